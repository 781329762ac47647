"""Stock Transformers models with gates, wrapped for Composer."""

import pytest

from llmshearing.quantities import byte_size, count, seconds, steps, token_milliseconds

RIGHT = [
    (steps, ("320ba",), 320), (steps, ("0.1dur", 300), 30), (steps, ("1dur", 7), 7),
    (steps, ("0dur", 7), 0), (steps, ("1e-3dur", 5000), 5),
    (seconds, ("90s",), 90), (seconds, ("30m",), 1800), (seconds, ("2h",), 7200),
    (count, ("1.3B",), 1_300_000_000), (count, ("370M",), 370_000_000),
    (count, ("2.2e6",), 2_200_000),
    (count, ("1_000",), 1000), (count, ("0.4b",), 400_000_000), (count, ("2 T",), 2 * 10**12),
    (count, (5,), 5), (count, (1.5e3,), 1500), (count, ("4611686018427387903",), (1 << 62) - 1),
    (byte_size, ("64MiB",), 64 << 20), (byte_size, ("5GB",), 5 * 10**9), (byte_size, (100,), 100),
    (byte_size, ("1.5kb",), 1500), (byte_size, ("7B",), 7), (byte_size, ("1TiB",), 1 << 40),
    (token_milliseconds, ("8.5ms", 4), 8.5), (token_milliseconds, ("100tok/s", 4), 40.0),
]  # fmt: skip
WRONG = [
    (steps, ("320",)), (steps, ("0.1dur",)), (steps, ("1.1dur", 300)), (steps, ("-1ba",)),
    (steps, ("infdur", 3)), (steps, ("",)), (steps, ("1 ba",)), (steps, ("²ba",)),
    (seconds, ("30",)), (seconds, ("0m",)), (seconds, ("-1s",)), (seconds, ("1.5h",)),
    (count, ("much",)), (count, ("-1",)), (count, ("1.3X",)), (count, ("inf",)), (count, ("nan",)),
    (count, ("1e30",)), (count, ("4611686018427387904",)), (count, (True,)), (count, ("1GiB",)),
    (byte_size, ("1M",)), (byte_size, ("MiB",)), (byte_size, ("9e9TiB",)), (byte_size, ("",)),
    (token_milliseconds, ("8", 1)), (token_milliseconds, ("0ms", 1)),
    (token_milliseconds, ("-1tok/s", 1)), (token_milliseconds, ("8 s", 1)),
]  # fmt: skip


@pytest.mark.parametrize(("parse", "given", "value"), RIGHT)
def test_a_quantity_is_read(parse, given, value):
    assert parse(*given) == value


@pytest.mark.parametrize(("parse", "given"), WRONG)
def test_anything_else_is_refused(parse, given):
    with pytest.raises(ValueError):
        parse(*given)

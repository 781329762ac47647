#!/usr/bin/env bash
# Unpack llama.cpp's converter into build/interop, out of the source of the installed llama-cpp-python.
# `make interop` installs that first and then calls this.
set -euo pipefail
cd "$(dirname "$0")/../.."
version="$("$PYTHON" -c 'import llama_cpp; print(llama_cpp.__version__)')"
mkdir -p build/interop
"$PYTHON" -m pip download --quiet --no-deps --no-binary llama-cpp-python --dest build/interop \
	"llama-cpp-python==$version"
tar --extract --gzip --file "build/interop/llama_cpp_python-$version.tar.gz" --directory build/interop \
	--strip-components 2 "llama_cpp_python-$version/vendor/llama.cpp"

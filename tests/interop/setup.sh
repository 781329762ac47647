#!/usr/bin/env bash
# Install what tests/interop need: TRL, llama-cpp-python (compiled here with a C++ compiler, about seven
# minutes on one core) and, in build/interop, the source of the same version with llama.cpp's converter.
#
#   tests/interop/setup.sh && .venv/bin/python -m pytest -q -m slow -rs tests/interop
set -euo pipefail
cd "$(dirname "$0")/../.."
python="${PYTHON:-.venv/bin/python}"

# Build only llama.cpp's library: no servers, programs or image support.
CMAKE_ARGS="-DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF"
export CMAKE_ARGS="$CMAKE_ARGS -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF"
"$python" -m pip install --quiet --editable '.[interop]'

version="$("$python" -c 'import llama_cpp; print(llama_cpp.__version__)')"
mkdir -p build/interop
"$python" -m pip download --quiet --no-deps --no-binary llama-cpp-python --dest build/interop \
	"llama-cpp-python==$version"
tar --extract --gzip --file "build/interop/llama_cpp_python-$version.tar.gz" --directory build/interop \
	--strip-components 2 "llama_cpp_python-$version/vendor/llama.cpp"

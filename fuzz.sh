#!/bin/sh
# Runs each fuzz target for the time given (30s). FuzzObject starts from the
# ELF files of go-fuzz-corpus: those in the folder GO_FUZZ_CORPUS, or the
# module's if the proxy has it.
set -e

time=${1:-30s}
module=github.com/dvyukov/go-fuzz-corpus
if [ -z "$GO_FUZZ_CORPUS" ]; then
	GO_FUZZ_CORPUS=$(cd linker/testdata/corpus && go mod download -json $module 2>/dev/null |
		sed -n 's/^\t"Dir": "\(.*\)",$/\1/p') || true
fi
if [ -d "$GO_FUZZ_CORPUS/elf/corpus" ]; then
	echo "ELF files from $GO_FUZZ_CORPUS/elf/corpus"
	export GO_FUZZ_CORPUS
else
	echo "$module is not to be had here, and GO_FUZZ_CORPUS names no folder with elf/corpus:"
	echo "FuzzObject starts from the project's own objects only"
	unset GO_FUZZ_CORPUS
fi
targets=$(grep -rhoE '^func Fuzz[A-Za-z]+' --include='*_test.go' . | wc -l)
[ "$targets" -gt 0 ]
for file in $(grep -rlE '^func Fuzz' --include='*_test.go' .); do
	for target in $(grep -oE '^func Fuzz[A-Za-z]+' "$file" | cut -c6-); do
		echo "== $(dirname "$file") $target"
		# Without a bound, minimizing an input can take all of the time.
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 10x "./$(dirname "$file")"
	done
done

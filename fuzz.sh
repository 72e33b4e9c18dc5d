#!/bin/sh
# Runs each fuzz target for the time given (30s), one after the other, and fails
# if one has failed. The targets that read ELF files start from those of
# go-fuzz-corpus: in the folder GO_FUZZ_CORPUS, in shared/corpus beside the
# repository, or the module's if the proxy has it.
set -eu

time=${1:-30s}
untested=
module=github.com/dvyukov/go-fuzz-corpus
beside=../shared/corpus/go-fuzz-corpus
if [ -z "${GO_FUZZ_CORPUS-}" ] && [ -d "$beside/elf/corpus" ]; then
	GO_FUZZ_CORPUS=$(cd "$beside" && pwd)
elif [ -z "${GO_FUZZ_CORPUS-}" ]; then
	GO_FUZZ_CORPUS=$(cd linker/testdata/corpus && go mod download -json $module 2>/dev/null |
		sed -n 's/^\t"Dir": "\(.*\)",$/\1/p') || true
fi
if [ -d "$GO_FUZZ_CORPUS/elf/corpus" ]; then
	echo "ELF files from $GO_FUZZ_CORPUS/elf/corpus"
	export GO_FUZZ_CORPUS
else
	untested="NOT TESTED: $module is not to be had here, and GO_FUZZ_CORPUS names no folder with
elf/corpus: the targets that read ELF files start from the project's own only"
	unset GO_FUZZ_CORPUS
fi

# "PACKAGE TARGET", as go itself lists them.
list=$(go test -list '^Fuzz' ./...)
targets=$(echo "$list" | awk '/^Fuzz/ { names[n++] = $1 } /^ok/ { for (i = 0; i < n; i++) print $2, names[i]; n = 0 }')
written=$(grep -rhE '^func Fuzz[[:alnum:]_]*\(' --include='*_test.go' . | wc -l)
if [ -z "$targets" ] || [ "$(echo "$targets" | wc -l)" -ne "$written" ]; then
	echo >&2 "$0: the tests have $written fuzz targets, go test lists:"
	echo >&2 "${targets:-none}"
	exit 1
fi

# Without what earlier runs have left in Go's cache, which can take all of the time.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
log=$work/log
summary= failed=0
while read -r package target; do
	echo "== $package $target"
	# Three times, the last for longer: all of the time can go to the inputs that
	# are known, and its end, met in the middle of an input, is a failure to go
	# test, with no input or stack to show. Without a bound, minimizing an input
	# can take it, too.
	result=FAILED
	for limit in "$time" "$time" 60s; do
		status=0
		nice -n 19 go test -run '^$' -fuzz "^$target\$" -fuzztime "$limit" -fuzzminimizetime 10x -parallel 1 "$package" -args -test.fuzzcachedir="$work/cache" >"$log" 2>&1 </dev/null || status=$?
		cat "$log"
		execs=$(sed -n 's/.*execs: \([0-9]*\).*/\1/p' "$log" | tail -n 1)
		if [ "$status" -eq 0 ] && [ "${execs:-0}" -gt 0 ]; then
			result=ok
			break
		fi
		if [ "$status" -ne 0 ] && ! grep -q '^    context deadline exceeded$' "$log" || grep -qE 'Failing input|panic|_test\.go:' "$log"; then
			break
		fi
		echo "== $package $target once more"
	done
	[ "$result" = ok ] || failed=$((failed + 1))
	summary="$summary$(printf '%-7s %9s inputs  %s %s' "$result" "${execs:-0}" "$package" "$target")
"
done <<END
$targets
END
printf '\n%s%s targets, %s for each, %s failed\n' "$summary" "$written" "$time" "$failed"
[ -z "$untested" ] || echo "$untested"
[ "$failed" -eq 0 ]

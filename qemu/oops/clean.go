package oops

import (
	"regexp"
	"strings"
)

// volatile is what differs from boot to boot in a line's text.
var volatile = []struct {
	re   *regexp.Regexp
	repl func(string) string
}{
	{regexp.MustCompile(symbol + `\+0x[0-9a-f]+(?:/0x[0-9a-f]+)?`), cleanSymbol},
	{regexp.MustCompile(`\[\d+\]`), func(string) string { return "[PID]" }},
	{regexp.MustCompile(`\b(?:0x)?[0-9a-fA-F]{5,}\b`), cleanNumber},
	{regexp.MustCompile(`\b(?:CPU|cpu)(?:[#:] ?| )\d+\b`), func(s string) string { return s[:len("CPU")] }},
}

var (
	// What compilers hang on a name: foo.llvm.123, foo.cold, foo.isra.0,
	// foo.constprop.0, foo.part.0; C itself has no dots in names.
	offsetOrSuffix = regexp.MustCompile(`^([^.+]+)[.+].*$`)
	madePrefix     = regexp.MustCompile(`^(?:__(?:pfx|cfi|pi)_)+`)
	syscallPrefix  = regexp.MustCompile(`^(?:_{2,}(?:x64|ia32|x32|riscv|s390x|se|do)_(?:compat_)?sys_|SyS_)`)
)

// cleanSymbol strips offset, compilers' suffixes and prefixes, and the wrappers
// of system calls from a symbol as the kernel prints it. Those of arm64 stay: they
// are the system calls' only names there.
func cleanSymbol(s string) string {
	s = offsetOrSuffix.ReplaceAllString(s, "$1")
	if bare := madePrefix.ReplaceAllString(s, ""); bare != "" {
		s = bare
	}
	return syscallPrefix.ReplaceAllString(s, "sys_")
}

// cleanNumber takes a run of hexadecimal digits for an address, a long number,
// or what it says: a word, a small value such as exitcode=0x0000000b.
func cleanNumber(s string) string {
	digits, prefixed := strings.CutPrefix(s, "0x")
	decimal := strings.Trim(digits, "0123456789") == ""
	switch {
	case prefixed && len(strings.TrimLeft(digits, "0")) <= 4:
		return s
	case prefixed, len(digits) == 16, !decimal && len(digits) >= 8:
		return "ADDR"
	case decimal:
		return "NUM"
	}
	return s
}

// cleanText makes the words of a line fit for a title.
func cleanText(s string) string {
	for _, v := range volatile {
		s = v.re.ReplaceAllStringFunc(s, v.repl)
	}
	return strings.Join(strings.Fields(s), " ")
}

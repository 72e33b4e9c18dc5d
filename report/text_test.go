package report

import "testing"

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"a\tb\n":                        "a\tb\n",
		"\x1b[2J\x00\x07\x7f\r":         ".[2J....",
		"\x9b31m":                       ".31m", // CSI in 8 bits, and the same in UTF-8
		"\u009b31m":                     ".31m",
		"\u202eevil\u200b\u2028":        ".evil..",
		"/home/m\u00fcller/\u7a0b.yaml": "/home/m\u00fcller/\u7a0b.yaml",
	} {
		if got := Printable(in); got != want {
			t.Errorf("printable(%q) = %q, want %q", in, got, want)
		}
	}
}

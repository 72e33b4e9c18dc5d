package oops

import (
	"regexp"
	"strings"
)

var (
	hexRE    = regexp.MustCompile(`\b0x[0-9a-fA-F]+\b`)
	numberRE = regexp.MustCompile(`\b[0-9]+(?:\.[0-9]+)*`)
)

// Hang names a hang by the last line before it, stripped already. More of
// it is taken out than of a crash's line: a last line is any line, and its
// numbers vary with the host's speed and the image's size.
func Hang(line string) string {
	if line == "" {
		return "hang: no output"
	}
	line = hexRE.ReplaceAllString(cleanText(line), "ADDR")
	title := "hang: no output after " + numberRE.ReplaceAllString(line, "NUM")
	return strings.TrimSpace(title[:min(len(title), maxTitle)])
}

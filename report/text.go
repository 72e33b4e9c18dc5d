package report

import (
	"strings"
	"unicode"

	"unlucky/scenarios"
)

// TrustFlag is what a command that replays the user's own find must have added.
func TrustFlag(s scenarios.Scenario) string {
	if s.Guest.Command == "" && scenarios.OpenArguments(s.Guest) == nil {
		return ""
	}
	return " -trust"
}

// Printable takes out of a text of somebody else's (a guest, a program, a file)
// all by which it could command the terminal or hide: control bytes, 8-bit ones
// too, and marks that change the direction of writing.
func Printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return '.'
	}, strings.ToValidUTF8(text, "."))
}

package cli

import (
	"io"
	"os"
	"regexp"

	"golang.org/x/term"
)

// painted are the parts of lines that have a colour on a terminal: what is wrong is
// red, what is to be minded yellow, what is good green, what to type next cyan.
// Colour says nothing that the words do not.
var painted = func() (rules []paint) {
	with := term.NewTerminal(nil, "").Escape
	for form, colour := range map[string][]byte{
		`^unlucky: error:|: unlucky: |^  unlucky +[1-9]\d*|^not fixed:|^  \S+ +WILL STOP:|\bmissing$`: with.Red,
		`^warning:|^cannot tell:`:     with.Yellow,
		`^  passed +[1-9]\d*|^fixed:`: with.Green,
		`^unlucky: hint:|^next, .*:$`: with.Cyan,
	} {
		rules = append(rules, paint{regexp.MustCompile(`(?m)` + form), append(append(colour[:len(colour):len(colour)], "$0"...), with.Reset...)})
	}
	return rules
}()

type paint struct {
	form *regexp.Regexp
	with []byte // a template of package regexp
}

// colouring gives what is written to a terminal its colours, unless the user wants
// none: see no-color.org.
func colouring(out io.Writer) io.Writer {
	if !isTerminal(out) || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return out
	}
	return painter{out}
}

type painter struct{ out io.Writer }

func (p painter) Write(text []byte) (int, error) {
	coloured := text
	for _, c := range painted {
		coloured = c.form.ReplaceAll(coloured, c.with)
	}
	_, err := p.out.Write(coloured)
	return len(text), err
}

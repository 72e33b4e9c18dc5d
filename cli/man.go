package cli

import (
	"context"
	"flag"
	"strings"
)

func man(*flag.FlagSet) *command {
	return &command{
		summary: "print the manual page, made of these texts",
		examples: []string{
			"unlucky man | man -l -",
			"unlucky man >~/.local/share/man/man1/unlucky.1",
		},
		run: func(_ context.Context, c call) error {
			return texts.ExecuteTemplate(c.out, "unlucky.1", map[string]any{
				"Version": programVersion(), "Synopsis": synopsis, "Purpose": purpose, "About": about,
				"Commands": commands(), "Statuses": exitStatuses,
			})
		},
	}
}

var roffEscapes = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`)

// roff makes a text one of roff's, in which nothing is a request or an escape.
func roff(text string) string {
	lines := strings.Split(roffEscapes.Replace(strings.TrimRight(text, "\n")), "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") {
			lines[i] = `\&` + line
		}
	}
	return strings.Join(lines, "\n")
}

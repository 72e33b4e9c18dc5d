package cli

import (
	"context"
	"embed"
	"flag"
	"fmt"
	"regexp"
	"strings"
	"text/template"

	"unlucky/scenarios"
)

// values are what may stand at a place of a command line.
type values struct {
	Words   []string
	Files   []string // that end so; "" for any
	Folders bool
}

// placeholder is one of the words for arguments and for the values of flags that
// tell what they are; another one tells nothing.
var placeholder = regexp.MustCompile(`\w+`)

// valuesOf are what a synopsis, or a flag's name for its value, stands for.
func valuesOf(text string) (v values) {
	choice := strings.Contains(text, " or ") // "auto, kvm or tcg"
	for _, word := range placeholder.FindAllString(text, -1) {
		switch word {
		case "SCENARIO", "NAME":
			v.Words = append(v.Words, scenarios.Names()...)
			v.Files = append(v.Files, ".yaml")
		case "SEEDFILE":
			v.Files = append(v.Files, ".yaml")
		case "BUNDLE":
			v.Files = append(v.Files, ".tar.zst")
		case "FILE", "file":
			v.Files = append(v.Files, "")
		case "DIR", "folder", "tree":
			v.Folders = true
		case "COMMAND":
			v.Words = append(v.Words, names(commands())...)
		case "PACKAGE":
			v.Words = append(v.Words, "linux-source")
		case "show", "bash", "zsh", "fish":
			v.Words = append(v.Words, word)
		default:
			if choice && word != "or" {
				v.Words = append(v.Words, word)
			}
		}
	}
	return v
}

// Values are what the arguments of a command may be.
func (c *command) Values() values { return valuesOf(c.args) }

// What the templates ask of a command.
func (c *command) Summary() string    { return c.summary }
func (c *command) Examples() []string { return c.examples }

// flagText is a flag as its help has it.
type flagText struct {
	Name, Value string // Value is "" for one that takes none
	Usage       string
	Default     string // "" where that is nothing to tell
}

// Flags are in the order of their names.
func (c *command) Flags() (all []flagText) {
	c.VisitAll(func(f *flag.Flag) {
		t := flagText{Name: f.Name}
		t.Value, t.Usage = flag.UnquoteUsage(f)
		if f.DefValue != "false" && f.DefValue != "0" && f.DefValue != "0s" {
			t.Default = f.DefValue
		}
		all = append(all, t)
	})
	return all
}

// Values are what the value of a flag may be.
func (f flagText) Values() values { return valuesOf(f.Value) }

var behindBrief = regexp.MustCompile(`(?s)[;:,.(\n] .*|\n.*|\s+\(.*`)

// Brief is the first words of a flag's usage.
func (f flagText) Brief() string { return strings.TrimSpace(behindBrief.ReplaceAllString(f.Usage, "")) }

//go:embed templates
var templates embed.FS

var texts = template.Must(template.New("").Funcs(template.FuncMap{
	"join":  func(s []string) string { return strings.Join(s, " ") },
	"quote": func(s string) string { return strings.ReplaceAll(s, "'", `'\''`) },
	"fish":  strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace,
	"zsh":   strings.NewReplacer(`\`, `\\`, `[`, `\[`, `]`, `\]`, `:`, `\:`, `'`, `'\''`).Replace,
	"roff":  roff,
}).ParseFS(templates, "templates/*"))

func completion(*flag.FlagSet) *command {
	return &command{
		args: "bash|zsh|fish", min: 1, max: 1,
		summary: "print the completions of commands, flags, scenarios and files for a shell",
		examples: []string{
			"source <(unlucky completion bash)       # in ~/.bashrc",
			"unlucky completion zsh >~/.zfunc/_unlucky    # a folder of $fpath",
			"unlucky completion fish >~/.config/fish/completions/unlucky.fish",
		},
		run: func(_ context.Context, c call) error {
			shell := texts.Lookup("completion." + c.args[0])
			if shell == nil {
				return usageError{fmt.Errorf("completion %s: there are bash, zsh and fish", c.args[0])}
			}
			return shell.Execute(c.out, commands())
		},
	}
}

package yamltext

import (
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

// What is read most stays readable: a block where it can, no quotes where none are
// needed.
func TestStyles(t *testing.T) {
	for text, want := range map[string]string{
		"a b":           "a b",
		"7":             `"7"`,
		"yes":           `"yes"`,
		"<<":            `"<<"`,
		"a: b":          "'a: b'",
		"a\nb\n":        "|\n  a\n  b",
		"a\n\n\t b":     "|-\n  a\n\n  \t b",
		"a\n\n":         "|+\n  a\n",
		"\n  a\n":       `"\n  a\n"`,
		"\ta\nb":        `"\ta\nb"`,
		" a\n":          `" a\n"`,
		"a \nb\n":       `"a \nb\n"`,
		"a\r\n":         `"a\r\n"`,
		"a\u0085":       `"a\N"`,
		"a\u2028b":      `"a\Lb"`,
		"\ufeff\x00\n":  `"\uFEFF\0\n"`,
		"\u00fc\nb\n":   "|\n  \u00fc\n  b",
		"\xff":          "!!binary /w==",
		"a\n...\n---\n": "|\n  a\n  ...\n  ---",
	} {
		data, err := Marshal(map[string]string{"k": text})
		if got := strings.TrimSuffix(string(data), "\n"); err != nil || got != "k: "+want {
			t.Errorf("%q is written as\n%s\nwant\nk: %s\n%v", text, got, want, err)
		}
		back := map[string]string{}
		if err := yaml.Unmarshal(data, &back); err != nil || back["k"] != text {
			t.Errorf("%q comes back as %q, %v", text, back["k"], err)
		}
	}
}

// What this package would write otherwise than yaml.v3 is an error, not a surprise.
func TestUnknown(t *testing.T) {
	for _, v := range []any{
		struct {
			A []int `yaml:"a,flow"`
		}{},
		struct{ A int }{},
		struct {
			A *int `yaml:"a"`
		}{},
	} {
		if data, err := Marshal(v); err == nil {
			t.Errorf("%#v is written as %s", v, data)
		}
	}
}

package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	linkForm    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	headingForm = regexp.MustCompile(`(?m)^#+ (.*)$`)
	notAnchor   = regexp.MustCompile(`[^\w\- ]`)
)

// TestDocuments: the README is short enough to be read, and the links of the
// documents lead to files, and to headings, that are there.
func TestDocuments(t *testing.T) {
	text := map[string][]byte{}
	for _, pattern := range []string{"*.md", "docs/*.md", "examples/*/*.md"} {
		paths, err := filepath.Glob(pattern)
		if err != nil || paths == nil {
			t.Fatalf("%s: %v, %v", pattern, paths, err)
		}
		for _, path := range paths {
			if text[path], err = os.ReadFile(path); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := bytes.Count(text["README.md"], []byte("\n")); n >= 250 {
		t.Errorf("README.md has %d lines: what is longer belongs into docs", n)
	}
	links := 0
	for path, data := range text {
		for _, m := range linkForm.FindAllSubmatch(data, -1) {
			link := string(m[1])
			if strings.Contains(link, "://") {
				continue
			}
			links++
			file, heading, _ := strings.Cut(link, "#")
			to := path
			if file != "" {
				to = filepath.Join(filepath.Dir(path), file)
			}
			if _, err := os.Stat(to); err != nil {
				t.Errorf("%s: the link %s: %v", path, link, err)
			} else if heading != "" && !hasHeading(text[to], heading) {
				t.Errorf("%s: the link %s: %s has no such heading", path, link, to)
			}
		}
	}
	if links == 0 {
		t.Error("the documents have no links")
	}
}

// hasHeading tells whether a document has a heading of that anchor, as GitHub
// makes anchors.
func hasHeading(document []byte, anchor string) bool {
	for _, m := range headingForm.FindAllSubmatch(document, -1) {
		words := notAnchor.ReplaceAllString(strings.ToLower(string(m[1])), "")
		if strings.ReplaceAll(words, " ", "-") == anchor {
			return true
		}
	}
	return false
}

// TestArchitecture: packages import what docs/architecture.md says, which is only
// what stands below them there, and each has a row.
func TestArchitecture(t *testing.T) {
	doc, err := os.ReadFile("docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	said, place := map[string][]string{}, map[string]int{}
	var order []string
	for _, row := range packageRow.FindAllStringSubmatch(string(doc), -1) {
		place[row[1]] = len(order)
		order = append(order, row[1])
		for _, name := range quoted.FindAllStringSubmatch(row[2], -1) {
			said[row[1]] = append(said[row[1]], name[1])
		}
	}
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}}{{range .Imports}} {{.}}{{end}}`, "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		words := strings.Fields(line)
		name := strings.TrimPrefix(words[0], "unlucky/")
		if name == "e2e" {
			continue // tests alone
		}
		if _, ok := place[name]; !ok {
			t.Errorf("%s has no row", name)
			continue
		}
		var imports []string
		for _, word := range words[1:] {
			if own, ok := strings.CutPrefix(word, "unlucky/"); ok {
				imports = append(imports, own)
				if place[own] <= place[name] {
					t.Errorf("%s imports %s, which does not stand below it", name, own)
				}
			}
		}
		if !slices.Equal(imports, said[name]) {
			t.Errorf("%s imports %v, by the table %v", name, imports, said[name])
		}
		delete(said, name)
	}
	for name := range said {
		t.Errorf("%s has a row, and is no package", name)
	}
	// The walk names each once at least.
	_, walk, _ := strings.Cut(string(doc), "## One command, followed through")
	walk, _, _ = strings.Cut(walk, "\n## ")
	for _, name := range order[1:] {
		if !strings.Contains(walk, "`"+name+"`") && !strings.Contains(walk, "`"+name+".") && !strings.Contains(walk, name+"/") {
			t.Errorf("the walk does not name %s", name)
		}
	}
}

var (
	packageRow = regexp.MustCompile("(?m)^\\| `([a-z0-9/]+)` \\| .* \\| (.*)\\|$")
	quoted     = regexp.MustCompile("`([^`]+)`")
)

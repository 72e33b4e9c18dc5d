package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
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

package oops

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// titled returns the consoles of a folder with the titles that its EXPECTED.tsv
// gives them, a "FILE<tab>TITLE" a line.
func titled(t testing.TB, dir string) map[string]string {
	t.Helper()
	table, err := os.ReadFile(filepath.Join(dir, "EXPECTED.tsv"))
	if err != nil {
		t.Fatal(err)
	}
	titles := make(map[string]string)
	for line := range strings.Lines(string(table)) {
		file, title, ok := strings.Cut(strings.TrimRight(line, "\n"), "\t")
		if !ok {
			t.Fatalf("%s: %q is no file and title", dir, line)
		}
		titles[filepath.Join(dir, file)] = title
	}
	if len(titles) == 0 {
		t.Fatalf("%s: no titles in EXPECTED.tsv", dir)
	}
	return titles
}

func checkTitles(t *testing.T, dir string) {
	for path, want := range titled(t, dir) {
		console, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
			continue
		}
		got := "no crash"
		if r, crashed := Classify(console, false); crashed {
			got = r.Title
		}
		if got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
		checkLaws(t, console, false, 100)
		checkLaws(t, console, true, 4096)
	}
}

// TestPublic: consoles in the forms of public bug reports, their numbers and names
// replaced.
func TestPublic(t *testing.T) { checkTitles(t, "testdata/public") }

// TestShared: the consoles that are kept beside the repository, those of real boots
// on arm64 among them.
func TestShared(t *testing.T) {
	const shared = "../../../shared/consoles"
	dirs, err := filepath.Glob(shared + "/*/EXPECTED.tsv")
	if err != nil || len(dirs) == 0 {
		const missing = "NOT TESTED: there are no consoles with their titles in shared/consoles beside the repository"
		fmt.Fprintf(os.Stderr, "\n*** %s ***\n\n", missing)
		t.Skip(missing)
	}
	for _, table := range dirs {
		dir := filepath.Dir(table)
		t.Run(filepath.Base(dir), func(t *testing.T) { checkTitles(t, dir) })
	}
}

// prefixes are what stands before a console's lines where people have taken them
// from, and behind them.
var prefixes = []struct {
	name        string
	front, back string
}{
	{"CRLF", "", "\r"},
	{"coloured", "\x1b[1;31m", "\x1b[0m"},
	{"journal", "Apr 15 13:58:08 host-7 kernel: ", ""},
	{"journal, fractions", "Apr  5 13:58:08.665119 host-7.example.org kernel: ", ""},
	{"syslog", "2023-12-13T12:09:50.891483+00:00 host kernel: ", ""},
	{"raw syslog", "<4>", ""},
	{"dmesg -x", "kern  :warn  : ", ""},
	{"serial logger", "[2025-06-01 13:58:40] ", ""},
	{"serial logger, time", "[13:58:40.123] ", ""},
	{"CI", "2025-06-01T13:58:40.1234567Z ", ""},
	{"OpenWrt's logread", "Mon Nov 11 07:15:02 2024 kern.warn kernel: ", ""},
	{"mail", "> ", ""},
	{"mail twice", "> > ", "\r"},
}

// prefixed puts a prefix before each line of a console that is not empty.
func prefixed(console []byte, front, back string) []byte {
	var out bytes.Buffer
	for line := range bytes.Lines(console) {
		text := bytes.TrimSuffix(line, []byte("\n"))
		if len(text) > 0 {
			out.WriteString(front)
			out.Write(text)
			out.WriteString(back)
		}
		out.Write(line[len(text):])
	}
	return out.Bytes()
}

// checkPrefixed is the law of FuzzPrefix for one console.
func checkPrefixed(t *testing.T, name string, want Report, other []byte) {
	t.Helper()
	if got, _ := Classify(other, true); got != want {
		t.Errorf("%s: %+v, want %+v", name, got, want)
	}
}

func TestPrefixes(t *testing.T) {
	byT := regexp.MustCompile(`(?m)^((?:<\d>)?)\[ *(\d+)\.(\d{6})\]`)
	for path, console := range consoles(t) {
		console = console[max(0, len(console)-6000):] // the law is of any console
		want, _ := Classify(console, true)
		for _, p := range prefixes {
			checkPrefixed(t, path+": "+p.name, want, prefixed(console, p.front, p.back))
		}
		checkPrefixed(t, path+": dmesg -T", want, byT.ReplaceAll(console, []byte("${1}[Tue Apr 15 13:58:08 2025]")))
		checkPrefixed(t, path+": dmesg -H", want, byT.ReplaceAll(console, []byte("${1}[  +0.$3]")))
		checkPrefixed(t, path+": dmesg -d", want, byT.ReplaceAll(console, []byte("${1}[    $2.$3 <    0.000012>]")))
	}
}

// FuzzPrefix: a prefix before all lines changes nothing of a report.
func FuzzPrefix(f *testing.F) {
	for _, console := range consoles(f) {
		f.Add(console[max(0, len(console)-4000):], uint8(len(console)))
	}
	f.Fuzz(func(t *testing.T, console []byte, which uint8) {
		p := prefixes[int(which)%len(prefixes)]
		for line := range bytes.Lines(console) {
			if len(line) > LineMax/2 {
				return // cut into other pieces
			}
		}
		for i, b := range console {
			if b != '\n' && (b < ' ' || b > '~') {
				console[i] = '.' // an escape sequence may swallow what stands behind the line
			}
		}
		want, _ := Classify(console, true)
		checkPrefixed(t, p.name, want, prefixed(console, p.front, p.back))
	})
}

// TestInterleaved: what another CPU prints between a report's lines, and into
// them, is not of it, where the kernel says who prints.
func TestInterleaved(t *testing.T) {
	console, err := os.ReadFile("testdata/consoles/made-atomic-sleep.log")
	if err != nil {
		t.Fatal(err)
	}
	want, _ := Classify(console, false)
	n := 0
	for i, b := range console {
		if b != '\n' || i+1 == len(console) {
			continue
		}
		n++
		for _, other := range []string{
			"\n[   12.000001][    C0] Call Trace:\n[   12.000001][    C0]  frob_other+0x1/0x2\n",
			"[   12.000001][    C0] RIP: 0010:frob_other+0x1/0x2\n",
		} {
			mixed := string(console[:i]) + other + string(console[i+1:])
			if got, _ := Classify([]byte(mixed), false); got != want {
				t.Errorf("line %d, then %q: %+v, want %+v", n, other, got, want)
			}
		}
	}
	if n < 20 {
		t.Errorf("%d lines", n)
	}
}

// TestCut: a console that begins or ends anywhere in a report has its class or
// none, and no function that is not in it.
func TestCut(t *testing.T) {
	for path, console := range consoles(t) {
		for i, b := range console {
			if b != '\n' || len(console) > 2<<10 {
				continue
			}
			for _, part := range [][]byte{console[:i], console[i:]} {
				if r, crashed := Classify(part, true); crashed && r.Function != "" && !bytes.Contains(part, []byte(strings.TrimPrefix(r.Function, "sys_"))) {
					t.Errorf("%s, cut at %d: %+v", path, i, r)
				}
			}
		}
	}
}

// TestDocumented: docs/consoles.md has the title of every rule.
func TestDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/consoles.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules {
		words, _, _ := strings.Cut(strings.ReplaceAll(r.title, "$1$2", "$1"), "$")
		if words = strings.TrimSpace(words); words == "" {
			continue
		}
		if !bytes.Contains(doc, []byte("`"+words)) {
			t.Errorf("docs/consoles.md has no title that begins with %q", words)
		}
	}
}

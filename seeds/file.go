// Package seeds keeps what a sweep finds: the saved seed, one YAML file that
// holds all that a replay needs; the store, a folder of saved seeds by title;
// the journal, from which an interrupted sweep goes on; and the bundle, a seed
// with its image and all else that a boot needs in one file. It knows file
// formats and disks, and nothing of how a layout is linked or booted.
package seeds

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"gopkg.in/yaml.v3"

	"unlucky/layout"
	"unlucky/qemu"
	"unlucky/scenarios"
	"unlucky/yamltext"
)

// Version is the version of the saved-seed file that this package writes, and
// the newest that it reads.
const Version = 1

// File is one saved seed: all that a replay needs. Its digests are SHA-256 in
// hex.
type File struct {
	Version  int    `yaml:"unlucky"` // first in the file
	Layout   ID     `yaml:"seed"`
	Strategy string `yaml:"strategy"` // with its version, "text/1"; never auto
	Verdict  `yaml:",inline"`
	Accel    string    `yaml:"accel"` // kvm or tcg, or qemu.ByProgram
	Digests  Digests   `yaml:"digests"`
	Tools    Tools     `yaml:"tools"`
	Command  string    `yaml:"command"` // what boots it, ready to paste
	At       time.Time `yaml:"found"`   // UTC, whole seconds
	// Plan, where set, is linked instead of the seed's own: a minimized
	// layout.
	Plan *layout.Plan `yaml:"plan,omitempty"`
	// Minimized is what is known of the plan.
	Minimized *Minimized `yaml:"minimized,omitempty"`
	// Scenario is whole, so that the file can be mailed by itself. It is the
	// longest part and comes last.
	Scenario scenarios.Scenario `yaml:"scenario"`
}

// Template is what all saved seeds of one kernel in one guest have in common.
type Template struct {
	Scenario scenarios.Scenario
	Object   string // digest of vmlinux.o
	Initrd   string // digest
	Tools    Tools
}

// Digests tell whether a replay boots the same layout of the same kernel.
type Digests struct {
	Object string `yaml:"object"` // vmlinux.o as it was built
	Plan   string `yaml:"plan"`   // layout.Plan.Digest
	Image  string `yaml:"image"`  // the linked kernel that was booted
	Initrd string `yaml:"initrd"`
}

// Tools are the versions that built, linked and booted the layout. They
// explain a digest that differs.
type Tools struct {
	Clang string `yaml:"clang,omitempty"` // that compiled it, or else
	GCC   string `yaml:"gcc,omitempty"`
	LLD   string `yaml:"lld"`
	QEMU  string `yaml:"qemu"` // empty where guest.command boots
	// Unlucky is the version of this program; older files have none.
	Unlucky string `yaml:"unlucky,omitempty"`
}

// Compiler is it with its version.
func (t Tools) Compiler() string {
	if t.GCC != "" {
		return "gcc " + t.GCC
	}
	return "clang " + t.Clang
}

// maxFile bounds what Read takes in, in bytes. The plan of a kernel with
// 60,000 text sections, each of them padded, has less than half of it.
const maxFile = 16 << 20

// maxItems bounds the lines and commas in a file: each item of a list or of a
// mapping takes one of them, and 1 KB of memory while it is checked. That plan,
// with its twin, has a quarter of it.
const maxItems = 1 << 20

// Read reads a saved seed. It is strict: an unknown or missing key, a value
// that is none, a file cut short or of a newer version is an error that names
// the file, and the line where there is one.
func Read(path string) (File, error) {
	f, err := os.Open(path)
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return File{}, err
	}
	return parse(data, path)
}

// lastLine is YAML's own mark of a document's end. Without it a file that
// lost its tail on the way could still be valid YAML with other rules in it.
const lastLine = "..."

// firstLine finds the version before anything else is read, so that a newer
// file is called newer and not wrong.
var firstLine = regexp.MustCompile(`\A(?:[ \t]*(?:#[^\n]*)?\r?\n)*unlucky:[ \t]*([0-9]{1,9})[ \t]*\r?(?:\n|\z)`)

// parse reads a saved seed; path is for its errors. It takes nothing that
// Marshal could not write.
func parse(data []byte, path string) (File, error) {
	f, err := decode(data, path)
	if err != nil {
		return File{}, err
	}
	if _, err := f.Marshal(); err != nil {
		return File{}, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

// decode is parse without that last check.
func decode(data []byte, path string) (File, error) {
	fail := func(format string, args ...any) (File, error) {
		return File{}, fmt.Errorf("%s: %w", path, fmt.Errorf(format, args...))
	}
	if len(data) > maxFile {
		return fail("longer than %d MiB: not a saved seed", maxFile>>20)
	}
	if bytes.Count(data, []byte("\n"))+bytes.Count(data, []byte(",")) > maxItems {
		return fail("more than %d lines and commas: not a saved seed", maxItems)
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return fail("the file is empty")
	}
	if bytes.HasPrefix(data, []byte(zstdMagic)) {
		return fail("a bundle, and no seed file: unpack it with tar -xf, and take the %s in it", SeedFile)
	}
	m := firstLine.FindSubmatch(data)
	if m == nil {
		return fail(`not a saved seed: it does not begin with "unlucky: %d"`, Version)
	}
	if v, _ := strconv.Atoi(string(m[1])); v > Version {
		return fail("written by a newer unlucky (version %d); this one reads %d", v, Version)
	} else if v < 1 {
		return fail("there is no version %d of the saved seed", v)
	}
	text := bytes.TrimRight(data, " \t\r\n")
	if !bytes.HasSuffix(text, []byte("\n"+lastLine)) {
		return fail("cut short: its last line is not %q", lastLine)
	}

	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(&doc); err != nil {
		return fail("%w", plain(err))
	}
	if err := dec.Decode(new(yaml.Node)); err != io.EOF {
		return fail("something follows the end of the saved seed, the line %q", lastLine)
	}
	if n := anchored(&doc); n != nil {
		return fail("line %d: anchors and aliases are not taken: write the value out", n.Line)
	}
	keys := keyNodes(&doc)
	// yaml.v3 would not name its line.
	if n := keys["found"]; n != nil && n.ShortTag() != "!!timestamp" {
		return fail("line %d: found: %q is not a time like 2006-01-02T15:04:05Z", n.Line, n.Value)
	}
	// A node cannot be decoded strictly, so the text is read once more.
	dec = yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	var f File
	if err := dec.Decode(&f); err != nil {
		return fail("%w", plain(err))
	}
	for _, key := range []string{"seed", "strategy", "kind", "boots", "crashes", "accel", "digests", "tools", "command", "found", "scenario"} {
		if keys[key] == nil {
			return fail("%s: this key is missing", key)
		}
	}
	f.At = f.At.UTC().Truncate(time.Second)
	if key, err := f.check(); err != nil {
		if n := keys[key]; n != nil {
			return fail("line %d: %s: %w", n.Line, key, err)
		}
		return fail("%s: %w", key, err)
	}
	return f, nil
}

// anchored finds an anchor or an alias in a document, by which a short file could
// stand for a long one; nil if there is none.
func anchored(n *yaml.Node) *yaml.Node {
	if n.Anchor != "" || n.Kind == yaml.AliasNode {
		return n
	}
	for _, c := range n.Content {
		if found := anchored(c); found != nil {
			return found
		}
	}
	return nil
}

// keyNodes maps the keys of a document to their values, "digests.plan" for
// the nested ones. Keys without a value are left out: to yaml.v3 they are as
// good as missing.
func keyNodes(doc *yaml.Node) map[string]*yaml.Node {
	out := map[string]*yaml.Node{}
	var walk func(n *yaml.Node, prefix string)
	walk = func(n *yaml.Node, prefix string) {
		if n.Kind != yaml.MappingNode {
			return
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, value := n.Content[i].Value, n.Content[i+1]
			if value.ShortTag() == "!!null" {
				continue
			}
			out[prefix+key] = value
			if prefix == "" && key == "digests" {
				walk(value, "digests.")
			}
		}
	}
	walk(doc.Content[0], "")
	return out
}

var strategyForm = regexp.MustCompile(`\A[a-z]+/[1-9][0-9]*\z`)

// check returns the first key whose value is none, and why.
func (f *File) check() (key string, err error) {
	switch {
	case !strategyForm.MatchString(f.Strategy) || strings.HasPrefix(f.Strategy, "auto/"):
		return "strategy", fmt.Errorf("%q is not a strategy with its version, like text/1", f.Strategy)
	case f.Kind != qemu.Pass && f.Kind != qemu.Crash && f.Kind != qemu.Hang:
		return "kind", fmt.Errorf("%q is none of %s, %s, %s", f.Kind, qemu.Crash, qemu.Hang, qemu.Pass)
	case f.Title == "" && f.Kind != qemu.Pass:
		return "title", fmt.Errorf("a %s has a title", f.Kind)
	case !isTitle(f.Title):
		return "title", fmt.Errorf("%q is not printable ASCII", f.Title)
	case f.Boots < 1:
		return "boots", fmt.Errorf("%d is less than 1", f.Boots)
	case f.Crashes < 0 || f.Crashes > f.Boots:
		return "crashes", fmt.Errorf("%d is not between 0 and the %d boots", f.Crashes, f.Boots)
	case f.Scenario.Guest.Command != "" && f.Accel != qemu.ByProgram:
		return "accel", fmt.Errorf("%q is not %s, and guest.command boots it", f.Accel, qemu.ByProgram)
	case f.Scenario.Guest.Command == "" && f.Accel != "kvm" && f.Accel != "tcg":
		return "accel", fmt.Errorf("%q is neither kvm nor tcg", f.Accel)
	case f.Tools.Clang != "" && f.Tools.GCC != "":
		return "tools", errors.New("either clang or gcc compiles a kernel")
	case f.Minimized != nil && f.Plan == nil:
		return "minimized", errors.New("it is about a plan, and there is none")
	case f.Minimized != nil && slices.ContainsFunc(f.Minimized.Culprits, func(c Culprit) bool { return len(c.Functions) == 0 }):
		return "minimized", errors.New("a culprit has functions")
	case f.At.Year() < 1970 || f.At.Year() > 9999:
		return "found", fmt.Errorf("%s is not a time of a find", f.At)
	}
	for _, title := range slices.Sorted(maps.Keys(f.Titles)) {
		if title == "" || !isTitle(title) {
			return "titles", fmt.Errorf("%q is not a title in printable ASCII", title)
		}
		if n := f.Titles[title]; n < 1 || n > f.Boots {
			return "titles", fmt.Errorf("%q: %d is not between 1 and the %d boots", title, n, f.Boots)
		}
	}
	for _, d := range []struct{ key, value string }{
		{"digests.object", f.Digests.Object},
		{"digests.plan", f.Digests.Plan},
		{"digests.image", f.Digests.Image},
		{"digests.initrd", f.Digests.Initrd},
	} {
		if !isDigest(d.value) {
			return d.key, fmt.Errorf("%q is not a SHA-256 in 64 lower-case hex digits", d.value)
		}
	}
	return "", nil
}

// isTitle tells whether s can go to a terminal, a comment and a file name.
func isTitle(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

func isDigest(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

var unknownKey = regexp.MustCompile(`field (\S+) not found in type \S+`)

// plain puts an error of yaml.v3 on one line and in the words of the file.
func plain(err error) error {
	var te *yaml.TypeError
	if !errors.As(err, &te) {
		return errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	return errors.New(unknownKey.ReplaceAllString(strings.Join(te.Errors, "; "), "unknown key $1"))
}

// Marshal returns the saved seed as readable YAML; it sets Version, and takes
// fractions of a second from Found. Whatever it returns, Read takes with the
// same values, and marshals to the same bytes. What cannot be kept so is an
// error.
func (f File) Marshal() ([]byte, error) { return f.marshal(f.name()) }

// marshal is Marshal for a file of another name.
func (f File) marshal(name string) ([]byte, error) {
	f.Version = Version
	f.At = f.At.UTC().Truncate(time.Second)
	if key, err := f.check(); err != nil {
		return nil, fmt.Errorf("saved seed: %s: %w", key, err)
	}
	data, err := f.encode(name)
	if err != nil {
		return nil, fmt.Errorf("saved seed: %w", err)
	}
	// A seed that cannot be read again is lost. The time to learn that is now.
	back, err := decode(data, "saved seed")
	if err != nil {
		return nil, err
	}
	if again, err := back.encode(name); err != nil || !bytes.Equal(again, data) {
		return nil, errors.New("saved seed: it would not be read as it is written (a bug of unlucky: please report it)")
	}
	return data, nil
}

// encode writes the YAML; name is the file's, for its comment.
func (f File) encode(name string) ([]byte, error) {
	var b bytes.Buffer
	if f.Kind == qemu.Pass {
		comment(&b, "A layout of the Linux kernel that passes, to set beside those that fail.")
	} else {
		comment(&b, "An unlucky layout of the Linux kernel: %s (%d of %d boots).", f.Title, f.Crashes, f.Boots)
	}
	if f.Minimized != nil {
		for _, c := range f.Minimized.Culprits {
			comment(&b, "It %s.", c)
		}
	}
	comment(&b, "Boot it again: unlucky replay %s", name)
	text, err := yamltext.Marshal(f)
	if err != nil {
		return nil, err
	}
	b.Write(text)
	b.WriteString(lastLine + "\n")
	return b.Bytes(), nil
}

// comment writes a line that stays one, whatever the names in it.
func comment(b *bytes.Buffer, format string, args ...any) {
	fmt.Fprintf(b, "# %s\n", strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '.'
	}, fmt.Sprintf(format, args...)))
}

// name is the file's usual name, without its folder.
func (f File) name() string {
	name := f.Layout.String()
	if f.Kind == qemu.Pass {
		name = "twin-" + name
	}
	if f.Plan != nil {
		name += ".min"
	}
	return name + ".yaml"
}

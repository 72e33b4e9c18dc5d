package scenarios

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kballard/go-shellquote"
	"gopkg.in/yaml.v3"

	"unlucky/arch"
)

// decoder turns the YAML of one scenario into the struct. It walks the nodes
// itself, because only so can every error name its file, line and key.
type decoder struct {
	src   *source              // of the nodes that were not met before
	nodes map[*yaml.Node]place // of each value met
	at    map[string]place     // of each key in the scenario that is decoded
}

// place is where a value stands.
type place struct {
	src  *source
	line int
	key  string // the path there: "kernel.patches[0].file"
}

func newDecoder(src *source) *decoder {
	return &decoder{src: src, nodes: map[*yaml.Node]place{}}
}

func parse(data []byte, src *source) (Scenario, error) {
	d := newDecoder(src)
	r, err := d.resolve(data, src)
	if err != nil {
		return Scenario{}, err
	}
	return d.scenario(r.whole)
}

// document reads the one document of a file.
func document(data []byte, src *source) (*yaml.Node, error) {
	if len(data) > maxFile || bytes.Count(data, []byte("\n"))+bytes.Count(data, []byte(",")) > maxItems {
		return nil, src.errorf(0, "", "more than %d MiB, or than %d lines and commas: not a scenario", maxFile>>20, maxItems)
	}
	var doc, next yaml.Node
	in := yaml.NewDecoder(bytes.NewReader(data))
	err := in.Decode(&doc)
	if err == io.EOF || err == nil && doc.Kind == 0 {
		return nil, src.errorf(0, "", "is empty: a scenario needs name, kernel, guest and verdict")
	}
	if err == nil {
		switch err = in.Decode(&next); err {
		case io.EOF:
			root := doc.Content[0]
			root.HeadComment, root.FootComment = doc.HeadComment, doc.FootComment
			return root, nil
		case nil:
			return nil, src.errorf(next.Line, "", "a second document: a scenario file holds one")
		}
	}
	// "yaml: line 3: did not find expected key": the library's only form.
	line, msg := 0, strings.TrimPrefix(err.Error(), "yaml: ")
	if m := syntaxError.FindStringSubmatch(msg); m != nil {
		line, _ = strconv.Atoi(m[1])
		msg = m[2]
	}
	return nil, src.errorf(badLine(data, line), "", "is not YAML: %s", msg)
}

// badLine is the first line with which a text is no YAML any more. The library names
// the beginning of what it was reading, such as the mapping that a line is not
// indented like. In a text so long that nobody has written it by hand, that is line.
func badLine(data []byte, line int) int {
	lines := bytes.SplitAfter(data, []byte("\n"))
	if len(lines) > 400 || len(data) > 32<<10 {
		return line
	}
	for n := len(lines) - 1; n >= 0; n-- {
		in := yaml.NewDecoder(bytes.NewReader(data[:len(bytes.Join(lines[:n], nil))]))
		var err error
		for err == nil {
			err = in.Decode(new(yaml.Node))
		}
		if err == io.EOF {
			return n + 1
		}
	}
	return line
}

var syntaxError = regexp.MustCompile(`(?s)^line (\d+): (.*)`)

func (s *source) errorf(line int, key, format string, args ...any) error {
	var at []string
	switch {
	case s.file != "" && line > 0:
		at = append(at, fmt.Sprintf("%s:%d", s.file, line))
	case s.file != "":
		at = append(at, s.file)
	case line > 0:
		at = append(at, fmt.Sprintf("line %d", line))
	}
	if key != "" {
		at = append(at, key)
	}
	err := fmt.Errorf("%s: %w", strings.Join(at, ": "), fmt.Errorf(format, args...))
	if s.heir != nil {
		return s.heir.errorf(s.heirLine, "from", "%w", err)
	}
	return err
}

func (d *decoder) errorf(line int, key, format string, args ...any) error {
	return d.src.errorf(line, key, format, args...)
}

// place is where a key stands, or else the nearest one above it that is there.
func (d *decoder) place(key string) place {
	at := key
	for at != "" {
		if p, ok := d.at[at]; ok {
			p.key += key[len(at):] // in a list of two files' items it has another index there
			return p
		}
		at = at[:max(strings.LastIndexAny(at, ".["), 0)]
	}
	p := d.at[""]
	p.key = key
	return p
}

// bad is an error about a key.
func (d *decoder) bad(key, format string, args ...any) error {
	p := d.place(key)
	return p.src.errorf(p.line, p.key, format, args...)
}

// scenario decodes a whole one.
func (d *decoder) scenario(n *yaml.Node) (Scenario, error) {
	s := defaults(archOf(n))
	d.at = map[string]place{}
	if err := d.decode(n, "", reflect.ValueOf(&s).Elem()); err != nil {
		return Scenario{}, err
	}
	if err := d.check(&s); err != nil {
		return Scenario{}, err
	}
	return s, nil
}

// archOf is the architecture that a scenario names, whose machine and image are the
// defaults; that of one that names none, or one that is not known, is x86-64.
func archOf(n *yaml.Node) *arch.Arch {
	if n.Kind == yaml.MappingNode {
		if _, kernel := lookup(n, "kernel"); kernel != nil && kernel.Kind == yaml.MappingNode {
			if _, name := lookup(kernel, "arch"); name != nil {
				if a, err := arch.Of(name.Value); err == nil {
					return a
				}
			}
		}
	}
	return arch.X86_64
}

// decode fills v from n; key is the path of both, "kernel.patches[0].file".
func (d *decoder) decode(n *yaml.Node, key string, v reflect.Value) error {
	if _, ok := d.nodes[n]; !ok {
		d.nodes[n] = place{d.src, n.Line, key}
	}
	d.at[key] = d.nodes[n]
	if n.Anchor != "" || n.Kind == yaml.AliasNode {
		return d.errorf(n.Line, key, "anchors and aliases are not taken: write the value out")
	}
	if n.Tag == "!!null" {
		return d.errorf(n.Line, key, "has no value: give one or leave the key out")
	}
	want := func(kind yaml.Kind, what string) error {
		if n.Kind != kind {
			return d.errorf(n.Line, key, "must be %s", what)
		}
		return nil
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if err := want(yaml.ScalarNode, "one value"); err != nil {
			return err
		}
		text, err := d.text(n, key)
		if err != nil {
			return err
		}
		if err := u.UnmarshalText([]byte(text)); err != nil {
			return d.errorf(n.Line, key, "%w", err)
		}
		return nil
	}
	switch v.Kind() {
	case reflect.Struct:
		if err := want(yaml.MappingNode, "a list of keys: "+strings.Join(keys(v.Type()), ", ")); err != nil {
			return err
		}
		return d.mapping(n, key, v)
	case reflect.Slice:
		if err := want(yaml.SequenceNode, "a list, a line with a dash for each"); err != nil {
			return err
		}
		v.Set(reflect.Zero(v.Type()))
		for i, item := range n.Content {
			e := reflect.New(v.Type().Elem()).Elem()
			if err := d.decode(item, fmt.Sprintf("%s[%d]", key, i), e); err != nil {
				return err
			}
			v.Set(reflect.Append(v, e))
		}
		return nil
	}
	if err := want(yaml.ScalarNode, "one value"); err != nil {
		return err
	}
	switch v.Kind() {
	case reflect.String:
		text, err := d.text(n, key)
		if err != nil {
			return err
		}
		v.SetString(text)
	case reflect.Int:
		i, err := strconv.Atoi(n.Value)
		if err != nil {
			return d.errorf(n.Line, key, "%q is not a whole number", n.Value)
		}
		v.SetInt(int64(i))
	case reflect.Bool:
		if n.Value != "true" && n.Value != "false" {
			return d.errorf(n.Line, key, "%q is neither true nor false", n.Value)
		}
		v.SetBool(n.Value == "true")
	}
	return nil
}

// text reads a scalar. A number or a yes is as good a text as another; bytes that
// are no text come as !!binary.
func (d *decoder) text(n *yaml.Node, key string) (text string, err error) {
	if err := n.Decode(&text); err != nil {
		return "", d.errorf(n.Line, key, "%q is not a text", n.Value)
	}
	return text, nil
}

// keys are the YAML keys of a struct.
func keys(t reflect.Type) []string {
	var all []string
	for _, f := range fields(t) {
		all = append(all, yamlKey(f))
	}
	return all
}

// fields are those of a struct that have a key of their own.
func fields(t reflect.Type) []reflect.StructField {
	return slices.DeleteFunc(reflect.VisibleFields(t), func(f reflect.StructField) bool { return f.Anonymous })
}

func yamlKey(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
	return name
}

// below is the path of a key in the mapping at another.
func below(path, key string) string { return strings.TrimPrefix(path+"."+key, ".") }

func (d *decoder) mapping(n *yaml.Node, key string, v reflect.Value) error {
	valid, seen := fields(v.Type()), map[string]int{}
	for i := 0; i < len(n.Content); i += 2 {
		k, value := n.Content[i], n.Content[i+1]
		at := below(key, k.Value)
		field := slices.IndexFunc(valid, func(f reflect.StructField) bool { return yamlKey(f) == k.Value })
		switch {
		case k.Kind == yaml.ScalarNode && field >= 0:
		case at == "from":
			return d.errorf(k.Line, at, "not followed here: in a seed file or a kernel file a scenario stands whole, so make that anew from the scenario file")
		default:
			in := "a scenario"
			if key != "" {
				in = key
			}
			return d.errorf(k.Line, at, "unknown key: %s has %s", in, strings.Join(keys(v.Type()), ", "))
		}
		if first, ok := seen[k.Value]; ok {
			return d.errorf(k.Line, at, "given twice, first in line %d", first)
		}
		seen[k.Value] = k.Line
		if err := d.decode(value, at, v.FieldByIndex(valid[field].Index)); err != nil {
			return err
		}
		p := d.nodes[value]
		p.line = k.Line
		d.nodes[value], d.at[at] = p, p
	}
	return nil
}

var (
	nameForm    = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]*$`)
	packageForm = regexp.MustCompile(`^[a-z0-9][a-z0-9.+-]+(=[A-Za-z0-9.+:~-]+)?$`)
	configForm  = regexp.MustCompile(`^([a-z0-9][A-Za-z0-9_-]*config( [a-z0-9][A-Za-z0-9_-]*config)*|linux-config-[0-9]+\.[0-9]+(=[A-Za-z0-9.+:~-]+)?/[a-z0-9][a-z0-9_-]*)$`)
	setForm     = regexp.MustCompile(`^([A-Za-z0-9_]+)=(y|m|n|-?[0-9]+|0[xX][0-9A-Fa-f]+|"[^"\n]*")$`)
	optionForm  = regexp.MustCompile(`^-[!-~]+$`)
	testedForm  = regexp.MustCompile(`^[0-9]+\.[0-9]+(\.[0-9]+)?$`)
	patchForm   = regexp.MustCompile(`(?m)^--- .*\n\+\+\+ .*\n@@ `)
)

// Bounds of what a guest can be. They are far from any use, and keep sums of them
// from overflowing.
const (
	maxName   = 100
	minMemory = 1 << 20 // QEMU is told whole MiB
	maxMemory = 16 << 40
	maxLimit  = Duration(24 * time.Hour)
)

// check reads the files that the scenario names, and refuses what cannot be run.
func (d *decoder) check(s *Scenario) error {
	if s.Name == "" {
		return d.bad("name", "missing: lower-case letters, digits, dots and dashes (it names a folder)")
	}
	if !nameForm.MatchString(s.Name) {
		return d.bad("name", "%q is no name: lower-case letters, digits, dots and dashes (it names a folder)", s.Name)
	}
	if len(s.Name) > maxName {
		return d.bad("name", "has %d letters: at most %d (it names a folder)", len(s.Name), maxName)
	}
	if err := d.checkKernel(&s.Kernel); err != nil {
		return err
	}
	if err := d.checkGuest(&s.Guest, arch.Emulator(s.Kernel.Arch)); err != nil {
		return err
	}
	if s.Verdict.Pass.IsZero() {
		return d.bad("verdict.pass", "missing: a regular expression for a line that every good boot prints, or nothing could pass")
	}
	if s.Verdict.Confirm < 0 || s.Verdict.Confirm > 1000 {
		return d.bad("verdict.confirm", "%d is no number of boots (0 to 1000)", s.Verdict.Confirm)
	}
	return nil
}

// compilerForm is what kernel.compiler may be.
var compilerForm = regexp.MustCompile(`\A(clang|gcc(-[1-9][0-9]?)?)\z`)

func (d *decoder) checkKernel(k *Kernel) error {
	given := []string{}
	for _, c := range []struct{ key, value string }{{"package", k.Package}, {"dir", k.Dir}, {"build", k.Build}} {
		if c.value != "" {
			given = append(given, c.key)
		}
	}
	if len(given) == 0 {
		return d.bad("kernel", "needs one of package (Debian's source, linux-source-6.12), dir (a kernel tree) and build (a finished build folder)")
	}
	if len(given) > 1 {
		return d.bad("kernel."+given[1], "%s are given: a kernel comes from one of package, dir and build", strings.Join(given, " and "))
	}
	if k.Package != "" && !packageForm.MatchString(k.Package) {
		return d.bad("kernel.package", "%q is no Debian package (like linux-source-6.12, linux-source-6.12=6.12.117-1, or linux-source for the newest)", k.Package)
	}
	for key, dir := range map[string]*string{"kernel.dir": &k.Dir, "kernel.build": &k.Build} {
		if err := d.folder(key, dir); err != nil {
			return err
		}
	}
	if k.Compiler != "" && !compilerForm.MatchString(k.Compiler) {
		return d.bad("kernel.compiler", "%q is neither clang nor gcc, nor a version of it, such as gcc-12", k.Compiler)
	}
	if k.Compiler == "clang" { // which it is without
		k.Compiler = ""
	}
	a, err := arch.Of(k.Arch)
	if err != nil {
		return d.oneOf("kernel.arch", k.Arch, arch.Names()...)
	}
	k.Arch = a.Name
	if err := d.oneOf("kernel.image", k.Image, a.Images...); err != nil {
		return err
	}
	if k.Sections == Text { // which it is without
		k.Sections = ""
	}
	if k.Sections != "" {
		if err := d.oneOf("kernel.sections", k.Sections, Text, Data, Blocks); err != nil {
			return err
		}
	}
	for i, option := range k.LinkWithout {
		if !optionForm.MatchString(option) {
			return d.bad(fmt.Sprintf("kernel.link-without[%d]", i), "%q is no option of a linker in one word (like --fix-cortex-a53-843419)", option)
		}
	}
	if k.Build != "" {
		for _, key := range []string{"kernel.config", "kernel.set", "kernel.try", "kernel.patches", "kernel.compiler"} {
			if _, ok := d.at[key]; ok {
				return d.bad(key, "a finished build is taken as it is: leave this out, or give dir in place of build")
			}
		}
		return nil
	}
	for i := range k.Patches {
		if err := d.checkPatch(fmt.Sprintf("kernel.patches[%d]", i), &k.Patches[i]); err != nil {
			return err
		}
	}
	if err := d.checkConfig(k); err != nil {
		return err
	}
	seen := map[string]bool{}
	for i, set := range append(slices.Clip(k.Set), k.Try...) {
		key := fmt.Sprintf("kernel.set[%d]", i)
		if i >= len(k.Set) {
			key = fmt.Sprintf("kernel.try[%d]", i-len(k.Set))
		}
		m := setForm.FindStringSubmatch(set)
		switch {
		case strings.HasPrefix(set, "CONFIG_"):
			return d.bad(key, "%q: without the CONFIG_", set)
		case m == nil:
			return d.bad(key, `%q is not NAME=VALUE: y, m or n, a number, or a text in double quotes (SMP=y, NR_CPUS=2, CMDLINE="x")`, set)
		case seen[m[1]]:
			return d.bad(key, "%s is set twice", m[1])
		}
		seen[m[1]] = true
	}
	return nil
}

// absolute makes a path of the scenario absolute, and looks what is there.
func (d *decoder) absolute(key string, path *string) (fs.FileInfo, error) {
	src := d.place(key).src
	if !filepath.IsAbs(*path) {
		if src.whole {
			return nil, d.bad(key, "%q is not absolute", *path)
		}
		abs, err := filepath.Abs(src.beside(*path))
		if err != nil {
			return nil, err
		}
		*path = abs
	}
	if src.whole {
		return nil, nil
	}
	info, err := os.Stat(*path)
	if err != nil {
		return nil, d.bad(key, "there is no %s", *path)
	}
	return info, nil
}

// folder is absolute for a folder; an empty path is none.
func (d *decoder) folder(key string, path *string) error {
	if *path == "" {
		return nil
	}
	info, err := d.absolute(key, path)
	if err == nil && info != nil && !info.IsDir() {
		return d.bad(key, "%s is not a folder", *path)
	}
	return err
}

func (d *decoder) oneOf(key, got string, valid ...string) error {
	if slices.Contains(valid, got) {
		return nil
	}
	return d.bad(key, "%q is none of %s", got, strings.Join(valid, ", "))
}

func (d *decoder) checkPatch(key string, p *Patch) error {
	if p.Want == "" {
		p.Want = Applied
	}
	if err := d.oneOf(key+".want", p.Want, Applied, Absent, IfFits); err != nil {
		return err
	}
	if p.File == "" {
		return d.bad(key+".file", "missing: the name of a patch")
	}
	if p.Tested != "" && !testedForm.MatchString(p.Tested) {
		return d.bad(key+".tested", "%q is no kernel version (like 6.12.117)", p.Tested)
	}
	from := key + ".text"
	if p.Text == "" {
		from = key + ".file"
		p.Text = p.File
		if err := d.load(from, &p.Text, "a patch of yours, or a built-in one"); err != nil {
			return err
		}
	}
	if !patchForm.MatchString(p.Text) {
		return d.bad(from, "%s is not a unified diff", p.File)
	}
	return nil
}

// ReadPatch reads a patch that is wanted applied.
func ReadPatch(path string) (Patch, error) {
	data, err := readFile(path)
	if err != nil {
		return Patch{}, err
	}
	if !patchForm.Match(data) {
		return Patch{}, fmt.Errorf("%s is not a unified diff", path)
	}
	return Patch{File: filepath.Base(path), Want: Applied, Text: string(data)}, nil
}

func (d *decoder) checkConfig(k *Kernel) error {
	const key, hint = "kernel.config", "a make target (tinyconfig, x86_64_defconfig), Debian's (linux-config-6.12/amd64_none_amd64), or the file of a .config"
	switch {
	case k.Config == "":
		return d.bad(key, "missing: %s", hint)
	case strings.Contains(k.Config, "\n") || configForm.MatchString(k.Config):
		return nil
	}
	return d.load(key, &k.Config, hint)
}

func (d *decoder) checkGuest(g *Guest, emulator string) error {
	if err := d.checkCommand(g); err != nil {
		return err
	}
	switch {
	case g.Init == "" && g.Rootfs == "" && g.Command != "":
		if strings.Contains(g.Command, "{initrd}") {
			return d.bad("guest.command", "{initrd} needs init (a shell script, for busybox) or rootfs (a cpio)")
		}
	case g.Init == "" && g.Rootfs == "":
		return d.bad("guest", "needs init (a shell script, for busybox) or rootfs (a cpio)")
	case g.Init != "" && g.Rootfs != "":
		return d.bad("guest.rootfs", "init and rootfs are given: a guest has one of them")
	case g.Rootfs != "":
		if err := d.checkRootfs(&g.Rootfs); err != nil {
			return err
		}
	case !strings.Contains(g.Init, "\n"):
		if err := d.load("guest.init", &g.Init, "a script after `init: |`, or the file of one"); err != nil {
			return err
		}
	}
	if g.Limit > maxLimit {
		return d.bad("guest.limit", "%s is longer than %s: a boot that hangs would never be known to", g.Limit, maxLimit)
	}
	if g.Command != "" {
		return nil
	}
	if g.CPUs < 1 || g.CPUs > 1024 {
		return d.bad("guest.cpus", "%d is no number of CPUs (1 to 1024)", g.CPUs)
	}
	if g.Memory > maxMemory || g.Memory%minMemory != 0 {
		return d.bad("guest.memory", "%s is not of whole MiB from %s to %s", g.Memory, Size(minMemory), Size(maxMemory))
	}
	for key, value := range map[string]string{"machine": g.Machine, "cpu": g.CPU} {
		if value == "" {
			return d.bad("guest."+key, "is empty: name one of those that `%s -%s help` lists", emulator, key)
		}
	}
	return d.oneOf("guest.accel", g.Accel, "auto", "kvm", "tcg")
}

// ofQEMU are the keys of a guest that QEMU alone takes.
var ofQEMU = []string{"memory", "cpus", "machine", "cpu", "accel", "qemu-args"}

// byCommand is the accelerator of a guest that a command boots.
const byCommand = "command"

// maxSlots bounds the boards that are used at the same time.
const maxSlots = 1024

// checkCommand makes a guest that a command boots one without what is QEMU's.
func (d *decoder) checkCommand(g *Guest) error {
	const key = "guest.command"
	command, given := d.at[key]
	if !given {
		for _, only := range []string{"guest.slots", "guest.infra"} {
			if _, given := d.at[only]; given {
				return d.bad(only, "is for guest.command, and there is none")
			}
		}
		return nil
	}
	for _, name := range ofQEMU {
		if _, given := d.at["guest."+name]; given && (name != "accel" || g.Accel != byCommand) {
			return d.bad("guest."+name, "is QEMU's, and guest.command (line %d) boots without it: leave one of them out", command.line)
		}
	}
	g.Memory, g.CPUs, g.Machine, g.CPU, g.Accel, g.QEMUArgs = 0, 0, "", "", byCommand, nil
	words, err := shellquote.Split(g.Command)
	switch {
	case err != nil:
		return d.bad(key, "%q: %w", g.Command, err)
	case len(words) == 0 || words[0] == "":
		return d.bad(key, "is empty: give a program that boots {image} with {initrd} and {append}")
	case strings.Contains(g.Command, "\x00"):
		return d.bad(key, "%q has a zero byte", g.Command)
	}
	// A path is one beside the scenario, and a name is looked for in PATH.
	if program := words[0]; strings.Contains(program, "/") && !filepath.IsAbs(program) {
		if _, err := d.absolute(key, &words[0]); err != nil {
			return err
		}
		if rest, ok := strings.CutPrefix(strings.TrimLeft(g.Command, " \t\n"), program); ok {
			g.Command = shellquote.Join(words[0]) + rest
		} else {
			g.Command = shellquote.Join(words...)
		}
	}
	if _, given := d.at["guest.slots"]; !given {
		g.Slots = 1
	}
	if g.Slots < 1 || g.Slots > maxSlots {
		return d.bad("guest.slots", "%d is no number of boards (1 to %d)", g.Slots, maxSlots)
	}
	return nil
}

func (d *decoder) checkRootfs(path *string) error {
	const key = "guest.rootfs"
	info, err := d.absolute(key, path)
	if err != nil || info == nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return d.bad(key, "%s is not a file", *path)
	}
	f, err := os.Open(*path)
	if err != nil {
		return d.bad(key, "%w", err)
	}
	defer f.Close()
	magic := make([]byte, 6)
	io.ReadFull(f, magic) // a shorter file has none of these
	for _, m := range []string{"070701", "070702", "\x1f\x8b", "\x28\xb5\x2f\xfd"} {
		if bytes.HasPrefix(magic, []byte(m)) {
			return nil
		}
	}
	return d.bad(key, "%s is not a cpio (newc), plain, gzip or zstd", *path)
}

// load replaces the name of a file by its text, which ends in a newline and so
// cannot be taken for a name.
func (d *decoder) load(key string, text *string, hint string) error {
	src := d.place(key).src
	if src.whole {
		return d.bad(key, "%q is the name of a file: here its text must stand in its place", *text)
	}
	data, err := src.read(*text)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return d.bad(key, "there is no %q beside %s: it takes %s", *text, src.file, hint)
	case err != nil:
		return d.bad(key, "reading %q: %w", *text, err)
	case len(bytes.TrimSpace(data)) == 0:
		return d.bad(key, "%q is empty: it takes %s", *text, hint)
	}
	*text = strings.TrimRight(string(data), "\n") + "\n"
	return nil
}

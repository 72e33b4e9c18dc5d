package scenarios

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"unlucky/yamltext"
)

// file is a scenario file, which need not be whole: it may take over another.
type file struct {
	From string `yaml:"from"`
	Scenario
}

// maxChain bounds the files that a scenario comes from, itself among them. The
// built-in ones take three.
const maxChain = 8

// resolved is a scenario file and what it takes over.
type resolved struct {
	own    *yaml.Node // as it was written
	parent *yaml.Node // the one that it takes over, resolved; nil for none
	whole  *yaml.Node // both together
}

// resolve reads a file and those that it comes from.
func (d *decoder) resolve(data []byte, src *source) (resolved, error) {
	own, err := document(data, src)
	if err != nil || src.whole {
		return resolved{own: own, whole: own}, err
	}
	// Each file is decoded by itself first: its faults are found in its own lines,
	// and what is merged has the form of a scenario.
	var f file
	d.src, d.at = src, map[string]place{}
	if err := d.decode(own, "", reflect.ValueOf(&f).Elem()); err != nil {
		return resolved{}, err
	}
	from, ok := d.at["from"]
	if !ok {
		return resolved{own: own, whole: own}, nil
	}
	data, parent, err := src.parent(f.From)
	if err != nil {
		return resolved{}, d.errorf(from.line, "from", "%w", err)
	}
	parent.heir, parent.heirLine = src, from.line
	chain := []string{parent.file}
	for s := src; s != nil; s = s.heir {
		chain = append(chain, s.file)
		switch {
		case s.same(parent):
			slices.Reverse(chain)
			return resolved{}, d.errorf(from.line, "from", "%s comes from itself (%s): take one from out", parent.file, strings.Join(chain, " from "))
		case len(chain) > maxChain:
			return resolved{}, d.errorf(from.line, "from", "%s is the last of more than %d files that come one from the other: write some of them as one", parent.file, maxChain)
		}
	}
	above, err := d.resolve(data, parent)
	d.src = src
	if err != nil {
		return resolved{}, err
	}
	whole := d.merge(above.whole, own, "", reflect.TypeFor[Scenario]())
	if first := own.Content[0]; first.Value == "from" && len(whole.Content) > 0 {
		whole.Content[0].HeadComment = lines(first.HeadComment, whole.Content[0].HeadComment)
	}
	return resolved{own, above.whole, whole}, nil
}

// parent reads the scenario that a file takes over.
func (s *source) parent(name string) ([]byte, *source, error) {
	if slices.Contains(names, name) {
		return openBuiltin(name)
	}
	p := &source{file: s.beside(name)}
	data, err := readRegular(p.file)
	switch {
	case s.builtin, errors.Is(err, fs.ErrNotExist) && !isPath(name):
		return nil, nil, &UnknownError{name}
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil, fmt.Errorf("there is no %s: name a scenario file, as seen from this one, or one of %s", p.file, strings.Join(names, ", "))
	case err != nil:
		return nil, nil, fmt.Errorf("reading %q: %w", name, err)
	}
	return data, p, nil
}

func (s *source) same(t *source) bool {
	a, errA := os.Stat(s.file)
	b, errB := os.Stat(t.file)
	if s.builtin || t.builtin || errA != nil || errB != nil {
		return s.builtin == t.builtin && filepath.Clean(s.file) == filepath.Clean(t.file)
	}
	return os.SameFile(a, b)
}

// displaced are the keys that are not taken over where the file gives one of some
// others beside them.
var displaced = map[string][]string{
	"name":           {"from"},
	"description":    {"from"},
	"kernel.package": {"dir", "build"},
	"kernel.dir":     {"package", "build"},
	"kernel.build":   {"package", "dir"},
	"kernel.patches": {"build"},
	"kernel.config":  {"build"},
	"kernel.set":     {"build"},
	"kernel.try":     {"build"},
	"guest.init":     {"rootfs"},
	"guest.rootfs":   {"init"},

	"guest.command":   ofQEMU,
	"guest.slots":     ofQEMU,
	"guest.infra":     ofQEMU,
	"guest.memory":    {"command"},
	"guest.cpus":      {"command"},
	"guest.machine":   {"command"},
	"guest.cpu":       {"command"},
	"guest.accel":     {"command"},
	"guest.qemu-args": {"command"},
}

// listed are the keys that are merged item by item.
var listed = []string{"kernel.set", "kernel.try", "kernel.patches", "guest.append"}

// merge lays a file, or a part of it, over that of its parent.
func (d *decoder) merge(parent, child *yaml.Node, path string, t reflect.Type) *yaml.Node {
	out := d.copy(child)
	out.Content = nil
	for _, f := range fields(t) {
		at := below(path, yamlKey(f))
		pk, pv := lookup(parent, yamlKey(f))
		k, v := lookup(child, yamlKey(f))
		if slices.ContainsFunc(displaced[at], func(key string) bool { return has(child, key) }) {
			pv = nil
		}
		switch {
		case pv == nil && v == nil:
			continue
		case pv != nil && slices.Contains(listed, at):
			items := d.items(pv)
			// A symbol is in one of set and try.
			if _, other := lookup(child, map[string]string{"kernel.set": "try", "kernel.try": "set"}[at]); other != nil {
				others := d.items(other)
				items = slices.DeleteFunc(items, func(n *yaml.Node) bool { return slices.ContainsFunc(others, named(n)) })
			}
			if v == nil {
				k, v = pk, pv
			} else {
				items = over(items, d.items(v))
				k = commented(pk, k)
			}
			if v = d.list(v, items); v == nil {
				continue
			}
			if v.Kind == yaml.SequenceNode {
				v.Style &= pv.Style // in one line only where both are
			}
		case v == nil:
			k, v = pk, pv
		case pv != nil && v.Kind == yaml.MappingNode:
			k, v = commented(pk, k), d.merge(pv, v, at, f.Type)
		}
		out.Content = append(out.Content, k, v)
	}
	return out
}

// over is a list with those of another: in the place of the ones that they name
// again, or else at the end. An empty one takes all out.
func over(parent, child []*yaml.Node) []*yaml.Node {
	if len(child) == 0 {
		return nil
	}
	var all []*yaml.Node
	for _, p := range parent {
		switch {
		case !slices.ContainsFunc(child, named(p)):
			all = append(all, p)
		case !slices.ContainsFunc(all, named(p)):
			all = append(all, group(child, p)...)
		}
	}
	for _, c := range child {
		if !slices.ContainsFunc(parent, named(c)) {
			all = append(all, c)
		}
	}
	return all
}

// added is what a file adds to its parent; nil for nothing.
func (d *decoder) added(parent, child *yaml.Node, path string) *yaml.Node {
	out := d.copy(child)
	out.Content = nil
	for i := 0; i < len(child.Content); i += 2 {
		k, v := child.Content[i], child.Content[i+1]
		at := below(path, k.Value)
		_, pv := lookup(parent, k.Value)
		switch {
		case pv == nil || at == "name" || at == "description":
		case v.Kind == yaml.MappingNode:
			v = d.added(pv, v, at)
		case slices.Contains(listed, at) && len(d.items(v)) > 0:
			theirs, ours := d.items(pv), d.items(v)
			v = d.list(v, slices.DeleteFunc(slices.Clone(ours), func(n *yaml.Node) bool {
				return slices.EqualFunc(group(theirs, n), group(ours, n), d.equal)
			}))
		case d.equal(pv, v):
			v = nil
		}
		if v != nil {
			out.Content = append(out.Content, k, v)
		}
	}
	if len(out.Content) == 0 {
		return nil
	}
	return out
}

// equal tells whether two values say the same: of the name of a file, that it is
// the same file.
func (d *decoder) equal(a, b *yaml.Node) bool {
	if a.Kind != yaml.ScalarNode || b.Kind != yaml.ScalarNode {
		return a.Kind == b.Kind && slices.EqualFunc(a.Content, b.Content, d.equal)
	}
	return d.found(a) == d.found(b)
}

var fileKeys = regexp.MustCompile(`^(kernel\.(dir|build|config|patches\[\d+\]\.file)|guest\.(init|rootfs))$`)

// found is the text of a value or, for the name of a file that there is beside the
// scenario, its absolute path.
func (d *decoder) found(n *yaml.Node) string {
	text, p := textOf(n), d.nodes[n]
	if !fileKeys.MatchString(p.key) || p.src.builtin || p.key == "kernel.config" && configForm.MatchString(text) {
		return text
	}
	path, err := filepath.Abs(p.src.beside(text))
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		return text
	}
	return path
}

// Source is the YAML of a scenario, built in or a file, to print, copy and edit:
// with its comments, and with what it takes over from others. The built-in files
// that it names are found from anywhere, those beside it stay named as they are,
// and others have absolute paths.
func Source(nameOrPath string) ([]byte, error) {
	d, r, err := examine(nameOrPath)
	if err != nil {
		return nil, err
	}
	folder := filepath.Dir(d.nodes[r.own].src.file)
	var rename func(n *yaml.Node)
	rename = func(n *yaml.Node) {
		if p, ok := d.nodes[n]; ok && n.Kind == yaml.ScalarNode && filepath.Dir(p.src.file) != folder {
			if path := d.found(n); path != textOf(n) {
				n.SetString(path)
			}
		}
		for _, c := range n.Content {
			rename(c)
		}
	}
	rename(r.whole)
	return encode(r.whole)
}

// Added is what a scenario adds to the one that it takes over, as a scenario file;
// of one that takes over none it is all.
func Added(nameOrPath string) ([]byte, error) {
	d, r, err := examine(nameOrPath)
	if err != nil {
		return nil, err
	}
	if r.parent == nil {
		return encode(r.own)
	}
	return encode(d.added(r.parent, r.own, ""))
}

func examine(nameOrPath string) (*decoder, resolved, error) {
	data, src, err := open(nameOrPath)
	if err != nil {
		return nil, resolved{}, err
	}
	d := newDecoder(src)
	r, err := d.resolve(data, src)
	if err == nil {
		_, err = d.scenario(r.whole)
	}
	return d, r, err
}

// encode writes a scenario with its comments, each text in a form that comes back.
func encode(n *yaml.Node) ([]byte, error) {
	var mend func(n *yaml.Node) error
	mend = func(n *yaml.Node) error {
		if n.Kind == yaml.ScalarNode && n.Tag == "!!str" {
			m, err := yamltext.Node(n.Value)
			if err != nil {
				return err
			}
			n.Tag, n.Value, n.Style = m.Tag, m.Value, m.Style
		}
		for _, c := range n.Content {
			if err := mend(c); err != nil {
				return err
			}
		}
		return nil
	}
	if err := mend(n); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(n); err != nil {
		return nil, err
	}
	return b.Bytes(), e.Close()
}

// copy is a node to be changed, which stands where n does.
func (d *decoder) copy(n *yaml.Node) *yaml.Node {
	c := *n
	d.nodes[&c] = d.nodes[n]
	return &c
}

// lookup finds a key of a mapping and its value; nil for none.
func lookup(n *yaml.Node, key string) (k, v *yaml.Node) {
	for i := 0; i < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i], n.Content[i+1]
		}
	}
	return nil, nil
}

func has(n *yaml.Node, key string) bool {
	k, _ := lookup(n, key)
	return k != nil
}

// parameter is one of a kernel command line.
var parameter = regexp.MustCompile(`([^\s"]|"[^"]*("|$))+`)

// items are those of a list, or the parameters of a command line.
func (d *decoder) items(n *yaml.Node) []*yaml.Node {
	if n.Kind != yaml.ScalarNode {
		return slices.Clone(n.Content)
	}
	var all []*yaml.Node
	for _, p := range parameter.FindAllString(textOf(n), -1) {
		word := d.copy(n)
		word.SetString(p)
		all = append(all, word)
	}
	return all
}

// list is n with some items in the place of its own; nil for none.
func (d *decoder) list(n *yaml.Node, items []*yaml.Node) *yaml.Node {
	if len(items) == 0 {
		return nil
	}
	out := d.copy(n)
	if n.Kind != yaml.ScalarNode {
		out.Content = items
		return out
	}
	var words []string
	for _, w := range items {
		words = append(words, textOf(w))
	}
	out.SetString(strings.Join(words, " "))
	return out
}

// named tells of an item whether it has the name of n: the symbol, the parameter,
// or the file of a patch. To the kernel, - is _ in the name of a parameter.
func named(n *yaml.Node) func(*yaml.Node) bool {
	name := func(n *yaml.Node) string {
		if _, file := lookup(n, "file"); file != nil {
			return textOf(file)
		}
		name, _, _ := strings.Cut(textOf(n), "=")
		return strings.ReplaceAll(name, "-", "_")
	}
	want := name(n)
	return func(m *yaml.Node) bool { return name(m) == want }
}

// group are the items of a list that have the name of n.
func group(items []*yaml.Node, n *yaml.Node) []*yaml.Node {
	is := named(n)
	return slices.DeleteFunc(slices.Clone(items), func(m *yaml.Node) bool { return !is(m) })
}

// textOf is the text of a scalar that was decoded before.
func textOf(n *yaml.Node) (text string) {
	if n.Kind == yaml.ScalarNode {
		n.Decode(&text)
	}
	return text
}

// commented is a key with the comments of its parent's, too.
func commented(parent, child *yaml.Node) *yaml.Node {
	k := *child
	k.HeadComment = lines(parent.HeadComment, child.HeadComment)
	k.FootComment = lines(parent.FootComment, child.FootComment)
	if k.LineComment == "" {
		k.LineComment = parent.LineComment
	}
	return &k
}

func lines(a, b string) string { return strings.Trim(a+"\n"+b, "\n") }

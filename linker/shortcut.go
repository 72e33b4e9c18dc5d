package linker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// shortcut links a layout in one pass of the linker, where link-vmlinux.sh
// takes three and runs nm, kallsyms and the compiler in between, to learn the
// addresses that kallsyms' table holds. Padding changes no symbol's name and no
// order, so of that table only the addresses differ between two layouts: they
// are put into the finished image. What the shortcut takes from the script it
// reads in a trace of the baseline's link.
//
// Another order of the sections is another table: each order has a shortcut,
// learnt from the first link of it. A shortcut is believed only once it has
// given the script's own bytes for a layout other than the one it was learnt
// from, or a few other orders' have, and is held against the script again every
// checkEvery layouts.
type shortcut struct {
	name     string            // before the names of objects
	link     []string          // the script's last link
	objects  map[string][]byte // that the script made for it, by their names in link
	sort     []string          // sorttable's call, or nil
	kallsyms *kallsyms         // nil in a kernel without
}

// shortcutState is the shortcut of an order and how far it is to be believed.
type shortcutState struct {
	order []string // as in Plan.Order
	from  string   // digest of the plan that it was learnt from

	sync.Mutex // held through the first link that is compared: all wait for the outcome
	way        *shortcut
	text, all  bool // it has given the script's image for paddings in text, for lld's own
	refused    int  // layouts that it does not link
}

// provenOrders is after how many orders the shortcut of a further one is
// believed at once.
const provenOrders = 2

// maxOrders is how many orders' shortcuts are kept. A seed of strategy shuffle
// is an order of its own, a block of seeds of strategy cover shares one.
const maxOrders = 4

// shortcutOf is the shortcut of a plan's order. Where that has none yet it is
// new, and locked: it is to be learnt.
func (p *Kernel) shortcutOf(plan Plan) (s *shortcutState, fresh bool) {
	p.shortMu.Lock()
	defer p.shortMu.Unlock()
	for _, s := range p.shorts {
		if slices.Equal(s.order, plan.Order) {
			return s, false
		}
	}
	s = &shortcutState{order: plan.Order, from: plan.Digest(), text: p.orders.Load() >= provenOrders}
	if len(p.shorts) == 0 || p.distrust.Load() || !p.shorts[0].holds() { // before the baseline is known, or without a shortcut for it
		return s, false
	}
	if len(p.shorts) == maxOrders {
		p.shorts = slices.Delete(p.shorts, 1, 2)
	}
	p.shorts = append(p.shorts, s)
	s.Lock()
	return s, true
}

// forget drops the state of an order.
func (p *Kernel) forget(s *shortcutState) {
	p.shortMu.Lock()
	defer p.shortMu.Unlock()
	p.shorts = slices.DeleteFunc(p.shorts, func(t *shortcutState) bool { return t == s })
}

// holds tells whether there is a shortcut.
func (s *shortcutState) holds() bool {
	s.Lock()
	defer s.Unlock()
	return s.way != nil
}

// maxRefused is after how many refusals, with nothing proven, there is no
// shortcut.
const maxRefused = 4

// checkEvery is how many layouts are linked the short way for one that is
// linked both ways: a hundredth of the time.
var checkEvery = 256

// outOfReach are programs in the script that put more into the image than the
// shortcut knows of.
var outOfReach = regexp.MustCompile(`(?m)^\++ \S*(resolve_btfids|pahole)\b`)

// findShortcut reads the trace of a link in w's folder.
func (w *Worker) findShortcut(trace []byte, from string) (*shortcut, error) {
	if m := outOfReach.FindSubmatch(trace); m != nil {
		return nil, fmt.Errorf("its link needs %s", m[1])
	}
	s := &shortcut{name: fmt.Sprintf("shortcut-%.8s", from), objects: map[string][]byte{}}
	output := w.kernel.output()
	for _, line := range strings.Split(string(trace), "\n") {
		words := strings.Fields(strings.TrimLeft(line, "+"))
		if !strings.HasPrefix(line, "+") || len(words) == 0 {
			continue
		}
		o := slices.Index(words, "-o")
		switch {
		case o > 0 && o+1 < len(words) && words[o+1] == output:
			s.link, s.sort = words, nil
		case strings.HasSuffix(words[0], "/sorttable") && words[len(words)-1] == output:
			s.sort = words
		}
	}
	if s.link == nil {
		return nil, errors.New("no link of " + output + " in the trace of link-vmlinux.sh")
	}
	s.link = slices.DeleteFunc(s.link, func(word string) bool { return strings.HasPrefix(word, "-Map=") })
	if s.link[0] == "ld.lld" {
		s.link[0] = w.kernel.lld()
	}
	// The symbols' addresses sort ftrace's tables; without ftrace, none.
	if i := slices.Index(s.sort, "-s"); i > 0 {
		s.sort[i+1] = os.DevNull
	}
	for _, word := range s.link[1:] {
		info, err := os.Lstat(filepath.Join(w.dir, word))
		if err != nil || !info.Mode().IsRegular() || word == output || word != filepath.Base(word) {
			continue // an option, or what the build has
		}
		if word == "vmlinux.o" {
			continue // the worker's own
		}
		if s.objects[word], err = os.ReadFile(filepath.Join(w.dir, word)); err != nil {
			return nil, err
		}
	}
	image, err := openELF(filepath.Join(w.dir, output))
	if err != nil {
		return nil, err
	}
	defer image.Close()
	s.kallsyms, err = readKallsyms(image.File)
	return s, err
}

// link makes the image of what stands in the worker's folder: by the shortcut
// where that holds, otherwise by the whole script.
func (w *Worker) link(ctx context.Context, plan Plan) (image Image, err error) {
	s, fresh := w.kernel.shortcutOf(plan)
	if fresh {
		image, err = w.whole(ctx, plan, s)
		learnt := s.way != nil
		s.Unlock()
		if !learnt { // the next layout of this order may teach more
			w.kernel.forget(s)
		}
		return image, err
	}
	s.Lock()
	if w.kernel.distrust.Load() {
		s.way = nil
	}
	way, proven := s.way, &s.text
	if plan.Flag != nil {
		proven = &s.all
	}
	if way != nil && !*proven && plan.Digest() == s.from {
		way = nil // nothing has moved: it would prove nothing
	}
	first := way != nil && !*proven
	check := first || way != nil && w.kernel.links.Add(1)%int64(checkEvery) == 0
	if first {
		defer s.Unlock()
	} else {
		s.Unlock()
	}
	if way != nil && !check {
		if err = w.pass(ctx, way, plan.Flag, &image.Steps); err == nil {
			err = w.finish(ctx, &image)
			return image, err
		}
		if ctx.Err() != nil {
			return image, ctx.Err()
		}
		if isMachine(err) {
			return image, err
		}
		s.Lock()
		w.kernel.refused(s, err)
		s.Unlock()
	}
	if image, err = w.whole(ctx, plan, nil); err != nil || !check {
		return image, err
	}
	same, err := w.compare(ctx, way, plan.Flag, image.Digest)
	if ctx.Err() != nil {
		return Image{}, errors.Join(ctx.Err(), image.Remove())
	}
	if err != nil && isMachine(err) {
		return Image{}, errors.Join(err, image.Remove())
	}
	if !first {
		s.Lock()
		defer s.Unlock()
	}
	switch {
	case err != nil:
		w.kernel.refused(s, err)
	case same:
		if *proven = true; first && s.order != nil {
			w.kernel.orders.Add(1)
		}
	case first:
		s.way = nil
		w.kernel.longWay(errors.New("that gives another image"))
		w.kernel.distrust.Store(true)
	case w.kernel.distrust.CompareAndSwap(false, true):
		w.kernel.note("warning: one pass of the linker no longer gives the image that link-vmlinux.sh gives")
		w.kernel.note("warning: from here on each layout is linked by the whole script; replay what the last %d layouts have shown", checkEvery)
	}
	return image, nil
}

// whole links by the whole script. Where learn is given, its shortcut is learnt
// from that.
func (w *Worker) whole(ctx context.Context, plan Plan, learn *shortcutState) (image Image, err error) {
	var trace *bytes.Buffer
	if learn != nil {
		trace = new(bytes.Buffer)
	}
	if image.Steps.Link, err = w.script(ctx, plan.Flag, trace); err != nil {
		return image, err
	}
	if learn != nil {
		if learn.way, err = w.findShortcut(trace.Bytes(), learn.from); err != nil {
			learn.way = nil
			w.kernel.longWay(err)
		}
	}
	passes, _ := filepath.Glob(filepath.Join(w.dir, ".tmp_vmlinux*"))
	for _, path := range passes { // images, too
		os.Remove(path)
	}
	image.SystemMap = filepath.Join(w.dir, "System.map")
	err = w.finish(ctx, &image)
	return image, err
}

// compare tells whether the shortcut gives the image that the script gave. An
// error is that it gives none.
func (w *Worker) compare(ctx context.Context, way *shortcut, flag *uint32, want string) (bool, error) {
	script := w.vmlinux() + ".script"
	if os.Rename(w.vmlinux(), script) == nil { // a bzImage's, which the caller may want
		defer os.Rename(script, w.vmlinux())
	}
	if err := w.pass(ctx, way, flag, new(Steps)); err != nil {
		return false, err
	}
	got, err := fileDigest(w.vmlinux())
	return got == want, errors.Join(err, os.Remove(w.vmlinux()))
}

// refused counts a layout that the shortcut does not link; the lock is held.
func (p *Kernel) refused(s *shortcutState, err error) {
	if s.refused++; s.refused == 1 {
		p.note("a layout is linked by the whole link-vmlinux.sh, not in one pass of the linker: %v", err)
	}
	if s.refused == maxRefused && !s.text && !s.all {
		s.way = nil
		p.longWay(err)
	}
}

// pass links the short way.
func (w *Worker) pass(ctx context.Context, way *shortcut, flag *uint32, took *Steps) error {
	argv, err := w.linkCommand(way)
	if err != nil {
		return err
	}
	if flag != nil {
		argv = slices.Insert(argv, 1, fmt.Sprintf("--randomize-section-padding=%d", *flag))
	}
	os.Remove(w.vmlinux()) // an old one is not to be taken for the new
	var log bytes.Buffer
	if took.Link, err = w.run(ctx, w.kernel.linkLimit(), w.kernel.env, &log, argv...); err != nil {
		return err
	}
	if err := w.checkImage(); err != nil {
		return err
	}
	linked := time.Now()
	if way.kallsyms != nil {
		if err := way.kallsyms.patch(w.vmlinux()); err != nil {
			return err
		}
	}
	patched := time.Now()
	if way.sort != nil {
		log.Reset()
		if _, err := w.run(ctx, w.kernel.linkLimit(), w.kernel.env, &log, way.sort...); err != nil {
			return err
		}
	}
	took.Kallsyms, took.Image = patched.Sub(linked), time.Since(patched)
	return nil
}

// linkCommand is the shortcut's link in the worker's folder, to which it adds
// the objects that the script had made for it.
func (w *Worker) linkCommand(way *shortcut) ([]string, error) {
	argv := slices.Clone(way.link)
	for i, word := range argv {
		data, ok := way.objects[word]
		if !ok {
			continue
		}
		argv[i] = way.name + word // the script writes to the other
		path := filepath.Join(w.dir, argv[i])
		if exists(path) {
			continue
		}
		others, _ := filepath.Glob(filepath.Join(w.dir, "shortcut-*"+word)) // of other orders
		for _, other := range others {
			os.Remove(other)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return nil, errors.Join(err, os.Remove(path))
		}
	}
	return argv, nil
}

// finish makes what is booted of the vmlinux that was linked.
func (w *Worker) finish(ctx context.Context, image *Image) (err error) {
	begin := time.Now()
	defer func() { image.Steps.Image += time.Since(begin) }()
	if image.Digest, err = fileDigest(w.vmlinux()); err != nil {
		return err
	}
	if f := w.kernel.functionsOf(); f != nil {
		if image.Addresses, err = f.addresses(w.vmlinux()); err != nil {
			return err
		}
	}
	if w.kernel.Image == "bzImage" {
		image.VMLinux = w.vmlinux()
		path, err := w.compress(ctx)
		if err != nil {
			return err
		}
		image.Path, err = w.handOut(path)
		return err
	}
	image.Path, err = w.handOut(w.vmlinux())
	image.VMLinux = image.Path
	return err
}

// learnShortcut takes what the trace of the baseline's link tells.
func (w *Worker) learnShortcut(trace []byte) {
	s := &shortcutState{from: Plan{}.Digest()}
	if !w.kernel.FullScript {
		var err error
		if s.way, err = w.findShortcut(trace, s.from); err != nil {
			s.way = nil
			w.kernel.longWay(err)
		}
	}
	w.kernel.shortMu.Lock()
	defer w.kernel.shortMu.Unlock()
	w.kernel.shorts = []*shortcutState{s}
}

// longWay says why there is no shortcut.
func (p *Kernel) longWay(err error) {
	p.note("each layout is linked by the whole link-vmlinux.sh, not in one pass: %v", err)
}

func (p *Kernel) note(format string, a ...any) {
	if p.Note != nil {
		p.Note(format, a...)
	}
}

// Pass is one pass of the linker over what the worker has linked before, and
// nothing else: the least that a layout can cost, for benchmarks. It returns
// the path of the ELF file.
func (w *Worker) Pass(ctx context.Context) (string, error) {
	s, fresh := w.kernel.shortcutOf(Plan{})
	if fresh || !s.holds() {
		return "", errors.New("this kernel can't be linked in one pass")
	}
	argv, err := w.linkCommand(s.way)
	if err == nil {
		_, err = output(ctx, w.dir, w.kernel.env, argv...)
	}
	return w.vmlinux(), err
}

package linker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"unlucky/host"
	"unlucky/layout"
	"unlucky/linker/kbuild"
)

// shortcut links a layout in one pass of the linker, where link-vmlinux.sh
// takes three and runs nm, kallsyms and the compiler in between, to learn the
// addresses that kallsyms' table holds. Between two layouts that table differs
// in addresses and in its order only: it is made anew in the finished image.
// What the shortcut takes from the script it reads in a trace of the baseline's
// link.
//
// It is believed only once it has given the script's own bytes for a layout other
// than the baseline, for one in another order, and for one that lld has padded
// itself, each for layouts of its kind; and it is held against the script again
// every checkEvery layouts.
type shortcut struct {
	links    [][]string        // of the script; one pass is the last of them
	objects  map[string][]byte // that the script made for that, by their names in it
	btfIDs   []string          // the call of resolve_btfids on the image, or nil
	sort     []string          // sorttable's call, or nil
	kallsyms *kallsyms         // nil in a kernel without
}

// shortcutState is a kernel's shortcut and how far it is to be believed.
type shortcutState struct {
	sync.Mutex // held through the first link of a kind, which is compared: all wait for the outcome
	way        *shortcut
	proven     [kinds]bool // it has given the script's image
	refused    [kinds]int  // layouts that it does not link
}

// What a shortcut is to be proven for.
const (
	padded  = iota // text in the baseline's order
	ordered        // text in another order
	flagged        // all sections, by lld itself
	kinds
)

// kindOf is what a plan asks of a shortcut.
func kindOf(p layout.Plan) int {
	switch {
	case p.Flag != nil:
		return flagged
	case len(p.Order) > 0:
		return ordered
	}
	return padded
}

// maxRefused is after how many refusals of a kind, with none of it proven, there
// is no shortcut for it.
const maxRefused = 4

// checkEvery is how many layouts are linked the short way for one that is
// linked both ways: a hundredth of the time.
var checkEvery = 256

// findShortcut reads the trace of a link in w's folder.
func (w *Worker) findShortcut(trace []byte) (*shortcut, error) {
	s := new(shortcut)
	output := w.kernel.output()
	var calls [][]string // that write a file
	for _, line := range strings.Split(string(trace), "\n") {
		words := strings.Fields(strings.TrimLeft(line, "+"))
		if !strings.HasPrefix(line, "+") || len(words) == 0 {
			continue
		}
		o := slices.Index(words, "-o")
		switch {
		case o > 0 && o+1 < len(words) && words[o+1] == output:
			s.links, s.btfIDs, s.sort = append(calls, words), nil, nil
		case o > 0:
			calls = append(calls, words)
		case words[len(words)-1] != output:
		case filepath.Base(words[0]) == "resolve_btfids":
			s.btfIDs = words
		case filepath.Base(words[0]) == "sorttable":
			s.sort = words
		}
	}
	if s.links == nil {
		return nil, errors.New("no link of " + output + " in the trace of link-vmlinux.sh")
	}
	lld := s.links[len(s.links)-1][0]
	s.links = slices.DeleteFunc(s.links, func(argv []string) bool { return argv[0] != lld }) // the compiler's
	for i, argv := range s.links {
		s.links[i] = slices.DeleteFunc(argv, func(word string) bool { return strings.HasPrefix(word, "-Map=") })
		if lld == "ld.lld" {
			argv[0] = w.kernel.Linker()
		}
	}
	// The symbols' addresses sort ftrace's tables; without ftrace, none.
	if i := slices.Index(s.sort, "-s"); i > 0 {
		s.sort[i+1] = os.DevNull
	}
	var err error
	// BTF holds no address: the baseline's serves every layout.
	if s.objects, err = w.madeFor(append(s.links[len(s.links)-1][1:], s.btfIDs...)); err != nil {
		return nil, err
	}
	image, err := openELF(filepath.Join(w.dir, output))
	if err != nil {
		return nil, err
	}
	defer image.Close()
	s.kallsyms, err = readKallsyms(image.File)
	return s, err
}

// madeFor are the objects, and the IDs of BTF, that the script has made, of those
// that words of a call name.
func (w *Worker) madeFor(words []string) (map[string][]byte, error) {
	made := map[string][]byte{}
	for _, word := range words {
		info, err := os.Lstat(filepath.Join(w.dir, word))
		if err != nil || !info.Mode().IsRegular() || word != filepath.Base(word) {
			continue // an option, or what the build has
		}
		if ext := filepath.Ext(word); word == "vmlinux.o" || ext != ".o" && ext != ".BTF_ids" {
			continue // the worker's own, or an image
		}
		if made[word], err = os.ReadFile(filepath.Join(w.dir, word)); err != nil {
			return nil, err
		}
	}
	return made, nil
}

// link makes the image of what stands in the worker's folder: by the shortcut
// where that holds, otherwise by the whole script.
func (w *Worker) link(ctx context.Context, plan layout.Plan) (image Image, err error) {
	if w.kernel.packed != nil {
		return w.linkPacked(ctx, plan)
	}
	s, kind := &w.kernel.short, kindOf(plan)
	s.Lock()
	way := s.way
	moves := plan.Flag != nil || len(plan.Order)+len(plan.Paddings) > 0 // or it would prove nothing
	if !s.proven[kind] && (!moves || s.refused[kind] >= maxRefused) {
		way = nil
	}
	first := way != nil && !s.proven[kind]
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
		w.kernel.refused(kind, err)
		s.Unlock()
	}
	if image, err = w.whole(ctx, plan); err != nil || !check {
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
		w.kernel.refused(kind, err)
	case same:
		s.proven[kind] = true
	case s.way == nil: // another worker has seen it
	case first:
		s.way = nil
		w.kernel.longWay(errors.New("that gives another image"))
	default:
		s.way = nil
		w.kernel.note("warning: one pass of the linker no longer gives the image that link-vmlinux.sh gives")
		w.kernel.note("warning: from here on each layout is linked by the whole script; replay what the last %d layouts have shown", checkEvery)
	}
	return image, nil
}

// whole links by the whole script.
func (w *Worker) whole(ctx context.Context, plan layout.Plan) (image Image, err error) {
	if image.Steps.Link, err = w.script(ctx, plan.Flag, nil); err != nil {
		return image, err
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
	if os.Rename(w.vmlinux(), script) == nil { // a boot image's, which the caller may want
		defer os.Rename(script, w.vmlinux())
	}
	if err := w.pass(ctx, way, flag, new(Steps)); err != nil {
		return false, err
	}
	got, err := kbuild.FileDigest(w.vmlinux())
	return got == want, errors.Join(err, os.Remove(w.vmlinux()))
}

// refused counts a layout that the shortcut does not link; the lock is held.
func (p *Kernel) refused(kind int, err error) {
	s := &p.short
	if s.refused[kind]++; s.refused[kind] == 1 {
		p.note("a layout is linked by the whole link-vmlinux.sh, not in one pass of the linker: %v", err)
	}
	if s.refused[kind] == maxRefused && !s.proven[kind] {
		p.longWay(err)
	}
}

// lld runs one of the links of a shortcut, and returns its CPU time. The error is
// a *LinkError where it is the layout's.
func (w *Worker) lld(ctx context.Context, way *shortcut, n int, flag *uint32) (time.Duration, error) {
	argv, err := w.withMade(way, way.links[n])
	if err != nil {
		return 0, err
	}
	if flag != nil {
		argv = slices.Insert(argv, 1, fmt.Sprintf("--randomize-section-padding=%d", *flag))
	}
	var log bytes.Buffer
	took, err := w.run(ctx, w.kernel.linkLimit(), w.kernel.Env, &log, argv...)
	if err != nil && ctx.Err() == nil && !isMachine(err) && linkerSaid.Match(log.Bytes()) {
		err = &LinkError{linkReason(log.Bytes(), err), log.String()}
	}
	return took, err
}

// pass links the short way.
func (w *Worker) pass(ctx context.Context, way *shortcut, flag *uint32, took *Steps) (err error) {
	os.Remove(w.vmlinux()) // an old one is not to be taken for the new
	if took.Link, err = w.lld(ctx, way, len(way.links)-1, flag); err != nil {
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
	for _, argv := range [][]string{way.btfIDs, way.sort} {
		if argv == nil {
			continue
		}
		var log bytes.Buffer
		argv, err := w.withMade(way, argv)
		if err == nil {
			_, err = w.run(ctx, w.kernel.linkLimit(), w.kernel.Env, &log, argv...)
		}
		if err != nil {
			return fmt.Errorf("%s: %w%s", argv[0], err, host.LastLines(log.Bytes(), 4))
		}
	}
	took.Kallsyms, took.Image = patched.Sub(linked), time.Since(patched)
	return nil
}

// withMade is a call of the shortcut in the worker's folder, to which it adds what
// the script had made for it.
func (w *Worker) withMade(way *shortcut, argv []string) ([]string, error) {
	argv = slices.Clone(argv)
	for i, word := range argv {
		data, ok := way.objects[word]
		if !ok {
			continue
		}
		argv[i] = "shortcut" + word // the script writes to the other
		path := filepath.Join(w.dir, argv[i])
		if exists(path) {
			continue
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return argv, errors.Join(err, os.Remove(path))
		}
	}
	return argv, nil
}

// finish makes what is booted of the vmlinux that was linked.
func (w *Worker) finish(ctx context.Context, image *Image) (err error) {
	begin := time.Now()
	defer func() { image.Steps.Image += time.Since(begin) }()
	if image.Digest, err = kbuild.FileDigest(w.vmlinux()); err != nil {
		return err
	}
	if f := w.kernel.functionsOf(); f != nil {
		if image.Addresses, err = f.addresses(w.vmlinux()); err != nil {
			return err
		}
	}
	if w.kernel.BootFile() != "" {
		image.VMLinux = w.vmlinux()
		path, err := w.bootImage(ctx)
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
	s := &w.kernel.short
	s.Lock()
	defer s.Unlock()
	s.way, s.proven, s.refused = nil, [kinds]bool{}, [kinds]int{}
	if w.kernel.FullScript {
		return
	}
	way, err := w.findShortcut(trace)
	if err != nil {
		w.kernel.longWay(err)
		return
	}
	s.way = way
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
	s := &w.kernel.short
	s.Lock()
	way := s.way
	s.Unlock()
	if way == nil {
		return "", errors.New("this kernel can't be linked in one pass")
	}
	argv, err := w.withMade(way, way.links[len(way.links)-1])
	if err == nil {
		_, err = host.Output(ctx, w.dir, w.kernel.Env, argv...)
	}
	return w.vmlinux(), err
}

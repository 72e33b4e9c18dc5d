package linker

import (
	"bytes"
	"context"
	"debug/elf"
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

// onePass links a layout in one pass of the linker, where link-vmlinux.sh
// takes three and runs nm, kallsyms and the compiler in between, to learn the
// addresses that kallsyms' table holds. Between two layouts that table differs
// in addresses and in its order only: it is made anew in the finished image.
// What it takes from the script it reads in a trace of the baseline's
// link.
//
// It is used for a kind of plan only after one image of that kind, other than the
// baseline, has equalled the script's byte for byte: one padded, one in another order,
// one that lld itself has padded. It is checked again every checkEvery layouts.
type onePass struct {
	links    [][]string        // of the script; one pass is the last of them
	objects  map[string][]byte // that the script made for that, by their names in it
	btfIDs   []byte            // what .BTF_ids has in each image: numbers of types, no address; nil in a kernel without
	sort     []string          // sorttable's call, or nil
	nm       []string          // the call that lists the symbols for it, where it has a table of ftrace's to sort; or nil
	kallsyms *kallsyms         // nil in a kernel without
}

// mends tells whether lld mends erratum 843419 in its images, where it meets it.
func (p *onePass) mends() bool { return slices.Contains(p.links[len(p.links)-1], kbuild.FixErratum) }

// onePassState is how one pass is made, and for which kinds of plans that is proven.
type onePassState struct {
	sync.Mutex // held through the first link of a kind, which is compared: all wait for the outcome
	how        *onePass
	proven     [kinds]bool // it has given the script's image
	refused    [kinds]int  // layouts that it does not link
}

// The kinds of plans.
const (
	padded  = iota // text in the baseline's order
	ordered        // text in another order
	flagged        // all sections, by lld itself
	kinds
)

// kindOf is the kind of a plan.
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
// is no other way for it than the script.
const maxRefused = 4

// checkEvery is how many layouts are linked the short way for one that is
// linked both ways: a hundredth of the time.
var checkEvery = 256

// scriptEvery is how many of these checks are by one pass for one by the whole script,
// where delta links are checked: the script takes ten times as long as one pass.
const scriptEvery = 16

// findOnePass reads the trace of a link in w's folder.
func (w *Worker) findOnePass(trace []byte) (*onePass, error) {
	s := new(onePass)
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
			s.links, s.sort, s.nm = append(calls, words), nil, nil
		case o > 0:
			calls = append(calls, words)
		case words[len(words)-1] != output:
		case filepath.Base(words[0]) == "sorttable":
			s.sort = words
		case slices.Contains(words, "-S") && strings.HasSuffix(words[0], "nm"):
			s.nm = words
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
	var err error
	if s.objects, err = w.madeFor(s.links[len(s.links)-1][1:]); err != nil {
		return nil, err
	}
	image, err := openELF(filepath.Join(w.dir, output))
	if err != nil {
		return nil, err
	}
	defer image.Close()
	if ids := image.Section(btfIDs); ids != nil {
		if s.btfIDs, err = ids.Data(); err != nil {
			return nil, err
		}
	}
	ftrace, err := hasFtrace(image.File)
	if err != nil {
		return nil, err
	}
	if i := slices.Index(s.sort, "-s"); i < 0 || !ftrace {
		s.nm = nil
		if i > 0 {
			s.sort[i+1] = os.DevNull
		}
	} else if s.nm == nil {
		return nil, errors.New("no call of nm for sorttable in the trace of link-vmlinux.sh")
	}
	s.kallsyms, err = readKallsyms(image.File)
	return s, err
}

// btfIDs is the section whose IDs resolve_btfids puts into a finished image
// (tools/bpf/resolve_btfids).
const btfIDs = ".BTF_ids"

// putSection writes what a section of an image holds.
func putSection(path, name string, data []byte) error {
	f, err := openELF(path)
	if err != nil {
		return err
	}
	defer f.Close()
	s := f.Section(name)
	if s == nil || s.FileSize != uint64(len(data)) {
		return fmt.Errorf("%s is another in this layout", name)
	}
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteAt(data, int64(s.Offset))
	return errors.Join(err, file.Close())
}

// hasFtrace tells whether an image has a table of ftrace's, whose entries sorttable
// sorts, and holds against the symbols.
func hasFtrace(f *elf.File) (bool, error) {
	t, err := readSymbolTable(f)
	if err != nil {
		return false, err
	}
	ends := map[string]uint64{}
	for i := range t.len() {
		if name := t.name(i); name == "__start_mcount_loc" || name == "__stop_mcount_loc" {
			ends[name] = t.address(i)
		}
	}
	return ends["__start_mcount_loc"] != ends["__stop_mcount_loc"], nil
}

// madeFor are the objects that the script has made, of those that words of a call
// name. BTF, which holds no address, is one of them.
func (w *Worker) madeFor(words []string) (map[string][]byte, error) {
	made := map[string][]byte{}
	for _, word := range words {
		info, err := os.Lstat(filepath.Join(w.dir, word))
		if err != nil || !info.Mode().IsRegular() || word != filepath.Base(word) {
			continue // an option, or what the build has
		}
		if word == "vmlinux.o" || filepath.Ext(word) != ".o" {
			continue // the worker's own, or an image
		}
		if made[word], err = os.ReadFile(filepath.Join(w.dir, word)); err != nil {
			return nil, err
		}
	}
	return made, nil
}

// link makes the image of what stands in the worker's folder: in one pass
// where that holds, otherwise by the whole script. Where a check is due it is both.
func (w *Worker) link(ctx context.Context, plan layout.Plan, due bool) (image Image, err error) {
	if w.kernel.packed != nil {
		return w.linkPacked(ctx, plan)
	}
	s, kind := &w.kernel.onePass, kindOf(plan)
	s.Lock()
	one := s.how
	moves := plan.Flag != nil || len(plan.Order)+len(plan.Paddings) > 0 // or it would prove nothing
	if !s.proven[kind] && (!moves || s.refused[kind] >= maxRefused) {
		one = nil
	}
	first := one != nil && !s.proven[kind]
	check := first || one != nil && due
	if first {
		defer s.Unlock()
	} else {
		s.Unlock()
	}
	if one != nil && !check {
		image.By = Pass
		if err = w.pass(ctx, one, plan.Flag, &image.Steps); err == nil {
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
	same := false
	want, err := image.Digest()
	if err == nil {
		same, err = w.compare(ctx, one, plan.Flag, want)
	}
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
	case s.how == nil: // another worker has seen it
	case first:
		s.how = nil
		w.kernel.byScript(errors.New("that gives another image"))
	default:
		s.how = nil
		w.kernel.note("warning: one pass of the linker no longer gives the image that link-vmlinux.sh gives")
		w.kernel.note("warning: from here on each layout is linked by the whole script; replay what the last %d layouts have shown", checkEvery)
	}
	return image, nil
}

// passOf is how one pass is made, where that is proven for a kind of plan; or else nil.
func (p *Kernel) passOf(kind int) *onePass {
	s := &p.onePass
	s.Lock()
	defer s.Unlock()
	if s.proven[kind] || p.packed != nil {
		return s.how
	}
	return nil
}

// whole links by the whole script.
func (w *Worker) whole(ctx context.Context, plan layout.Plan) (image Image, err error) {
	image.By = Script
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

// compare tells whether one pass gives the image that the script gave. An
// error is that it gives none.
func (w *Worker) compare(ctx context.Context, one *onePass, flag *uint32, want string) (bool, error) {
	script := w.vmlinux() + ".script"
	if os.Rename(w.vmlinux(), script) == nil { // a boot image's, which the caller may want
		defer os.Rename(script, w.vmlinux())
	}
	if err := w.pass(ctx, one, flag, new(Steps)); err != nil {
		return false, err
	}
	got, err := kbuild.FileDigest(w.vmlinux())
	return got == want, errors.Join(err, os.Remove(w.vmlinux()))
}

// refused counts a layout that does not link in one pass; the lock is held.
func (p *Kernel) refused(kind int, err error) {
	s := &p.onePass
	if s.refused[kind]++; s.refused[kind] == 1 {
		p.note("a layout is linked by the whole link-vmlinux.sh, not in one pass of the linker: %v", err)
	}
	if s.refused[kind] == maxRefused && !s.proven[kind] {
		p.byScript(err)
	}
}

// lld runs one of the links of the script, and returns its CPU time. The error is
// a *LinkError where it is the layout's.
func (w *Worker) lld(ctx context.Context, one *onePass, n int, flag *uint32) (time.Duration, error) {
	argv, err := w.withMade(one, one.links[n])
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
func (w *Worker) pass(ctx context.Context, one *onePass, flag *uint32, took *Steps) (err error) {
	os.Remove(w.vmlinux()) // an old one is not to be taken for the new
	if took.Link, err = w.lld(ctx, one, len(one.links)-1, flag); err != nil {
		return err
	}
	if err := w.checkImage(); err != nil {
		return err
	}
	return w.finishPass(ctx, one, took)
}

// finishPass makes of what lld has linked what the kernel's tools do.
func (w *Worker) finishPass(ctx context.Context, one *onePass, took *Steps) error {
	linked := time.Now()
	if one.kallsyms != nil {
		if err := one.kallsyms.patch(w.vmlinux()); err != nil {
			return err
		}
	}
	if one.btfIDs != nil {
		if err := putSection(w.vmlinux(), btfIDs, one.btfIDs); err != nil {
			return err
		}
	}
	patched := time.Now()
	if one.nm != nil {
		var list bytes.Buffer
		if _, err := w.run(ctx, w.kernel.linkLimit(), w.kernel.Env, &list, one.nm...); err != nil {
			return fmt.Errorf("%s: %w%s", one.nm[0], err, host.LastLines(list.Bytes(), 4))
		}
		if err := os.WriteFile(filepath.Join(w.dir, one.sort[slices.Index(one.sort, "-s")+1]), list.Bytes(), 0o644); err != nil {
			return err
		}
	}
	if one.sort != nil {
		var log bytes.Buffer
		if _, err := w.run(ctx, w.kernel.linkLimit(), w.kernel.Env, &log, one.sort...); err != nil {
			return fmt.Errorf("%s: %w%s", one.sort[0], err, host.LastLines(log.Bytes(), 4))
		}
	}
	took.Kallsyms, took.Image = patched.Sub(linked), time.Since(patched)
	return nil
}

// withMade is a call of one pass in the worker's folder, to which it adds what
// the script had made for it.
func (w *Worker) withMade(one *onePass, argv []string) ([]string, error) {
	argv = slices.Clone(argv)
	for i, word := range argv {
		data, ok := one.objects[word]
		if !ok {
			continue
		}
		argv[i] = "onepass" + word // the script writes to the other
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
	if f := w.kernel.functionsOf(); f != nil {
		if image.Addresses, image.Inserted, err = f.addresses(w.vmlinux()); err != nil {
			return err
		}
	}
	if w.kernel.BootFile() != "" {
		image.VMLinux = w.vmlinux()
		if image.digest, err = kbuild.FileDigest(image.VMLinux); err != nil {
			return err
		}
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

// learnOnePass takes what the trace of the baseline's link tells.
func (w *Worker) learnOnePass(trace []byte) {
	s := &w.kernel.onePass
	s.Lock()
	defer s.Unlock()
	s.how, s.proven, s.refused = nil, [kinds]bool{}, [kinds]int{}
	if w.kernel.By == Script {
		return
	}
	one, err := w.findOnePass(trace)
	if err != nil {
		w.kernel.byScript(err)
		return
	}
	s.how = one
}

// byScript says why each layout is linked by the whole script.
func (p *Kernel) byScript(err error) {
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
	s := &w.kernel.onePass
	s.Lock()
	one := s.how
	s.Unlock()
	if one == nil {
		return "", errors.New("this kernel can't be linked in one pass")
	}
	argv, err := w.withMade(one, one.links[len(one.links)-1])
	if err == nil {
		_, err = host.Output(ctx, w.dir, w.kernel.Env, argv...)
	}
	return w.vmlinux(), err
}

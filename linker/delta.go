package linker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"unlucky/layout"
)

// A delta link makes the image of a plan from a template, without lld. As one pass of
// the linker is used for a kind of plan only once it has given the image of the script,
// so is this only once it has given that of one pass, or of the script: for each kind,
// by each template. It is checked again where one pass is.

// deltaState are the templates of a kernel, which all workers share.
type deltaState struct {
	sync.Mutex // held while a template is made: all wait for it
	templates  []*template
	proven     map[provenDelta]bool
	carried    bool // those of a packed kernel are there
	off        bool // layouts are not linked so
	told       bool
	mended     bool // a layout was not linked so for an erratum: that is told
	misfits    int  // templates that did not serve the plan that they were made for
	missed     int  // layouts that were not linked so since the last that was
}

type provenDelta struct {
	t    *template
	kind int
}

// maxTemplates is how many templates a kernel has at most: each takes the memory of two
// images. Of 6.19 1,580 layouts took 5.
const maxTemplates = 8

// maxMissed is after how many such layouts in turn it is not tried any more.
const maxMissed = 16

func (d *deltaState) prove(t *template, kind int) {
	if d.proven == nil {
		d.proven = map[provenDelta]bool{}
	}
	d.proven[provenDelta{t, kind}] = true
}

// deltas tells whether layouts of a kind may be linked by delta.
func (p *Kernel) deltas(kind int) bool {
	return (p.By == Delta || p.noLLD != nil) && kind != flagged
}

// linksByDelta tells whether layouts of a kind are linked so by now.
func (p *Kernel) linksByDelta(kind int) bool {
	p.delta.Lock()
	defer p.delta.Unlock()
	return p.deltas(kind) && !p.delta.off && len(p.delta.proven) > 0
}

// disproved tells whether a plan has a template that has not given lld's image.
func (p *Kernel) disproved(plan layout.Plan) bool {
	a, err := p.functionsOf().model.Arrange(plan)
	if err != nil {
		return false
	}
	d := &p.delta
	d.Lock()
	defer d.Unlock()
	at, err := d.fits(a)
	return err == nil && at != nil && (d.off || !d.proven[provenDelta{at.t, kindOf(plan)}])
}

// noDelta is why no layout of this kernel is; nil where that is not known yet.
func (p *Kernel) noDelta() error {
	switch {
	case p.Sections != "":
		return errors.New("so far only those in which functions alone move are")
	}
	return nil
}

// fits finds the template of a plan; nil where there is none yet. The lock is held. The
// error is why the plan can't be placed.
func (d *deltaState) fits(a layout.Arrangement) (*placement, error) {
	for _, t := range d.templates {
		if p, err := t.place(a); !errors.Is(err, errTemplate) {
			if err == nil && p.mended() {
				err = errMended
			}
			return p, err
		}
	}
	return nil, nil
}

// byDelta links a plan by delta; ok tells whether it is.
func (w *Worker) byDelta(ctx context.Context, plan layout.Plan) (image Image, ok bool, err error) {
	kind, d, f := kindOf(plan), &w.kernel.delta, w.kernel.functionsOf()
	if f == nil && w.kernel.noLLD != nil {
		if _, err := w.kernel.baseline(ctx); err != nil {
			return image, true, err
		}
		f = w.kernel.functionsOf()
	}
	if !w.kernel.deltas(kind) || f == nil {
		return image, false, nil
	}
	runtime.LockOSThread() // whose time is taken
	defer runtime.UnlockOSThread()
	begin := threadTime()
	a, err := f.model.Arrange(plan)
	if err != nil {
		return image, false, nil
	}
	d.Lock()
	if d.off {
		d.Unlock()
		return image, false, nil
	}
	if err := w.carriedTemplates(ctx); err != nil {
		d.Unlock()
		return image, true, err
	}
	p, err := d.fits(a)
	if ok = err == nil && p != nil && d.proven[provenDelta{p.t, kind}]; ok {
		d.missed = 0
	}
	d.Unlock()
	if !ok {
		return image, false, nil // in lld's words, if it does not link
	}
	file, err := w.deltaFile(p.t)
	if err != nil {
		return image, true, err
	}
	if err := file.link(p); err != nil {
		return image, false, nil
	}
	image.Steps.Link = threadTime() - begin
	linked := time.Now()
	all := symbolTable{raw: file.bytes[p.t.symtab.Offset:][:p.t.symtab.FileSize]}
	image.Addresses = f.read(func(symbol int) uint64 { return all.address(p.t.listed.place(symbol)) })
	if image.Layout, err = checkArranged(f.model, a, image.Addresses); err != nil {
		d.Lock()
		defer d.Unlock()
		w.kernel.wrongDelta(err.Error())
		return image, false, nil
	}
	if w.kernel.BootFile() != "" { // and makefiles may change it
		if err := os.WriteFile(w.vmlinux(), file.bytes, 0o644); err != nil {
			return image, true, err
		}
		return image, true, w.finish(ctx, &image)
	}
	image.Path = w.nextName(file.path)
	image.VMLinux = image.Path
	if err = os.Link(file.path, image.Path); err == nil && w.kernel.By == Script {
		image.SystemMap, err = w.systemMap(image.Path)
	}
	image.Steps.Image = time.Since(linked)
	return image, true, err
}

// threadTime is the CPU time of this thread.
func threadTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_THREAD, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// deltaFile is a file with an image of a template, mapped: the next one is written over
// it, once the name that it was handed out by is gone.
type deltaFile struct {
	t     *template // nil where it is not whole
	path  string
	bytes []byte
	end   uint64 // of its output section, address
}

// deltaFile is one that nobody has, with an image of a template.
func (w *Worker) deltaFile(t *template) (*deltaFile, error) {
	var file *deltaFile
	for _, f := range w.files {
		if info, err := os.Stat(f.path); err == nil && info.Sys().(*syscall.Stat_t).Nlink == 1 && (file == nil || f.t == t) {
			file = f
		}
	}
	if file == nil {
		file = &deltaFile{path: filepath.Join(w.room, fmt.Sprintf("delta-%d", len(w.files)))}
		w.files = append(w.files, file)
	}
	if file.t == t {
		return file, nil
	}
	return file, file.begin(t)
}

// begin writes a template's own image. Its room is taken here, by a write that can fail:
// a mapped page without would end the program.
func (f *deltaFile) begin(t *template) (err error) {
	f.t = nil
	if err := f.close(); err != nil {
		return err
	}
	out, err := os.OpenFile(f.path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	if _, err = out.Write(t.base); err == nil {
		f.bytes, err = unix.Mmap(int(out.Fd()), 0, len(t.base), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err = errors.Join(err, out.Close()); err == nil {
		f.t, f.end = t, t.text.Addr+t.text.Size
	}
	return err
}

func (f *deltaFile) close() error {
	if f.bytes == nil {
		return nil
	}
	mapped := f.bytes
	f.bytes = nil
	return unix.Munmap(mapped)
}

// link makes the image of a placement of the file's template.
func (f *deltaFile) link(p *placement) error {
	f.t = nil // until it is whole
	if err := p.t.link(p, f.bytes, f.end); err != nil {
		return err
	}
	f.t, f.end = p.t, p.end
	return nil
}

// proveDelta holds the image that lld has made of a plan against that of the delta, where
// that is to be done: the first of a kind and template, and where it is due. The error is
// of the machine.
func (w *Worker) proveDelta(ctx context.Context, plan layout.Plan, image Image, due bool) error {
	k, kind := w.kernel, kindOf(plan)
	d, one, f := &k.delta, k.passOf(kind), k.functionsOf()
	if !k.deltas(kind) || one == nil || f == nil || len(plan.Order)+len(plan.Paddings) == 0 {
		return nil
	}
	a, err := f.model.Arrange(plan)
	if err != nil {
		return err
	}
	d.Lock()
	defer d.Unlock()
	if d.off {
		return nil
	}
	p, err := d.fits(a)
	if p == nil && err == nil {
		if err = k.noDelta(); err == nil {
			kept := w.vmlinux() + ".kept" // a boot image's, which the caller may want
			there := os.Rename(w.vmlinux(), kept) == nil
			if p, err = w.addTemplate(ctx, one, a); there {
				err = errors.Join(err, os.Rename(kept, w.vmlinux()))
			}
		}
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil && isMachine(err):
		return err
	case errors.Is(err, errMended):
		if !d.mended {
			d.mended = true
			k.note("a layout that lld may have to mend for erratum 843419 is linked by lld, not by delta")
		}
		return nil
	case err != nil && len(d.templates) == 0:
		d.off = true
		k.note("each layout is linked by lld, not by delta: %v", err)
		return nil
	case err != nil:
		k.missDelta(err)
		return nil
	}
	of := provenDelta{p.t, kind}
	if d.proven[of] && !due {
		return nil
	}
	got := slices.Clone(p.t.base)
	if err := p.t.link(p, got, p.t.text.Addr+p.t.text.Size); err != nil {
		k.missDelta(err)
		return nil
	}
	d.missed = 0
	if k.byMakefiles() { // which have changed it
		if sum := sha256.Sum256(got); hex.EncodeToString(sum[:]) != image.digest {
			k.wrongDelta("its digest")
			return nil
		}
	} else if want, err := os.ReadFile(image.VMLinux); err != nil {
		return err
	} else if at := differ(got, want); at >= 0 {
		k.wrongDelta(p.t.where(at))
		return nil
	}
	if len(d.proven) == 0 {
		k.note("layouts are linked by delta, which gives lld's image; each %dth is compared", checkEvery)
	}
	d.prove(p.t, kind)
	return nil
}

// missDelta counts a layout that can't be linked by delta. The lock is held.
func (p *Kernel) missDelta(err error) {
	d := &p.delta
	if d.missed++; d.missed == maxMissed {
		d.off = true
		p.note("each layout is linked by lld from here on, not by delta: %v", err)
	} else if !d.told {
		d.told = true
		p.note("a layout is linked by lld, not by delta: %v", err)
	}
}

// wrongDelta ends delta links: one was wrong at some place. The lock is held.
func (p *Kernel) wrongDelta(where string) {
	if !p.delta.off {
		p.delta.off = true
		p.note("warning: a delta link gives another image than lld: %s; please report this with the seed", where)
		p.note("warning: from here on each layout is linked by lld; replay what the last %d layouts have shown", checkEvery)
	}
}

// addTemplate makes the template of what a plan arranges: the baseline, with as much padding before its last
// movable section as the plan makes the output section longer.
func (w *Worker) addTemplate(ctx context.Context, one *onePass, a layout.Arrangement) (*placement, error) {
	d, k := &w.kernel.delta, w.kernel
	sections, err := k.baseline(ctx)
	if err != nil {
		return nil, err
	}
	var as layout.Plan
	if len(d.templates) > 0 {
		first := d.templates[0]
		p, err := first.place(a)
		longer := p.end - first.text.Addr - first.text.Size
		last := lastMovable(sections)
		switch {
		case !errors.Is(err, errTemplate):
			return p, err
		case last < 0 || longer == 0 || longer > layout.MaxPadding || len(d.templates) == maxTemplates || d.misfits == maxTemplates:
			return nil, errors.New("too much behind its text moves")
		}
		as.Paddings = []layout.Padding{{Section: sections[last].Name, Bytes: longer}}
	}
	t, err := w.template(ctx, one, as)
	// Where lld has inserted something, the functions stand elsewhere in the next one.
	for by := uint64(4); errors.Is(err, errMended) && by <= 64; by += 4 {
		t, err = w.template(ctx, one, shifted(as, sections, by))
	}
	if err != nil {
		return nil, err
	}
	p, err := t.place(a)
	if err == nil && p.mended() {
		err = errMended
	}
	if err == nil || errors.Is(err, errMended) || len(d.templates) == 0 {
		d.templates = append(d.templates, t)
	} else {
		d.misfits++
	}
	if errors.Is(err, errTemplate) && as.Paddings == nil {
		return w.addTemplate(ctx, one, a)
	}
	return p, err
}

// shifted is a plan that pads by some bytes before the first section that can be padded, too.
func shifted(plan layout.Plan, sections []layout.Section, by uint64) layout.Plan {
	outputs := layout.Outputs(sections)
	for i, s := range sections {
		if layout.Paddable(sections, i) && slices.Contains(outputs, s.Output) {
			plan.Paddings = append([]layout.Padding{{Section: s.Name, Bytes: by}}, plan.Paddings...)
			break
		}
	}
	return plan
}

// lastMovable is the last section of a layout's text that a plan can pad before; -1 for none.
func lastMovable(sections []layout.Section) int {
	outputs := layout.Outputs(sections)
	for i := len(sections) - 1; i >= 0; i-- {
		if layout.Movable(sections, i) && slices.Contains(outputs, sections[i].Output) {
			return i
		}
	}
	return -1
}

// template links the template that a plan makes.
func (w *Worker) template(ctx context.Context, one *onePass, plan layout.Plan) (*template, error) {
	i, err := w.linkTemplate(ctx, one, plan)
	if err != nil {
		return nil, err
	}
	return w.templateOf(ctx, one, i)
}

// linkTemplate links the image of a template.
func (w *Worker) linkTemplate(ctx context.Context, one *onePass, plan layout.Plan) (i linkedImage, err error) {
	e, err := w.kernel.edit(ctx, plan)
	if err != nil {
		return i, err
	}
	if err := w.takeObject(e); err != nil {
		return i, err
	}
	const mapFile = "template.map"
	defer w.clear()
	if err := w.passWith(ctx, one, "-Map="+mapFile); err != nil {
		return i, err
	}
	if err := w.checkImage(); err != nil {
		return i, err
	}
	i.plan = plan
	if i.raw, err = os.ReadFile(w.vmlinux()); err != nil {
		return i, err
	}
	if err := w.finishPass(ctx, one, new(Steps)); err != nil {
		return i, err
	}
	if i.finished, err = os.ReadFile(w.vmlinux()); err != nil {
		return i, err
	}
	i.linkMap, err = os.ReadFile(filepath.Join(w.dir, mapFile))
	return i, err
}

// templateOf makes the template of an image.
func (w *Worker) templateOf(ctx context.Context, one *onePass, i linkedImage) (*template, error) {
	sections, err := w.kernel.baseline(ctx)
	if err != nil {
		return nil, err
	}
	objects, err := w.linkedObjects(ctx, one, i.linkMap)
	if err != nil {
		return nil, err
	}
	script, err := w.linkerScript(one)
	if err != nil {
		return nil, err
	}
	t, err := newTemplate(i, script, objects, sections, one.kallsyms)
	if err != nil {
		return nil, err
	}
	if f := w.kernel.functionsOf(); f != nil && !f.table.same(t.listed) {
		return nil, errSymbols
	}
	t.listed = symbolTable{places: t.listed.places} // the rest of it need not stay
	if one.mends() {
		err = t.findSpoiled(objects)
	}
	return t, err
}

// passWith is the link of one pass with one more argument.
func (w *Worker) passWith(ctx context.Context, one *onePass, arg string) error {
	with := *one
	with.links = [][]string{append(slices.Clone(one.links[len(one.links)-1]), arg)}
	os.Remove(w.vmlinux())
	_, err := w.lld(ctx, &with, 0, nil)
	return err
}

// linkerScript is the text of that of one pass.
func (w *Worker) linkerScript(one *onePass) (string, error) {
	argv := one.links[len(one.links)-1]
	for i, word := range argv {
		path, ok := strings.CutPrefix(word, "--script=")
		if !ok && (word == "-T" || word == "--script") && i+1 < len(argv) {
			path, ok = argv[i+1], true
		}
		if !ok {
			continue
		}
		if !filepath.IsAbs(path) {
			path = filepath.Join(w.dir, path)
		}
		data, err := os.ReadFile(path)
		return string(data), err
	}
	return "", errors.New("no linker script in the trace of link-vmlinux.sh")
}

// linkedObjects reads the objects that a link map names. Those that lld makes of bitcode are
// no files: it writes them, numbered from 1 on, in a link of its own, as its symbols are
// then others.
func (w *Worker) linkedObjects(ctx context.Context, one *onePass, linkMap []byte) (objects []*linkedObject, err error) {
	const lto = "template.lto.o"
	entries, err := readLinkMap(linkMap)
	if err != nil {
		return nil, err
	}
	seen, made := map[string]bool{internalFile: true}, 0
	for _, e := range entries {
		if !e.input() || seen[e.file] {
			continue
		}
		seen[e.file] = true
		path := filepath.Join(w.dir, e.file)
		if e.file == "vmlinux.o" { // without padding
			path = w.kernel.object.path
		} else if !exists(path) {
			if made++; made == 1 {
				if err := w.passWith(ctx, one, "--lto-obj-path="+lto); err != nil {
					return nil, err
				}
			}
			path = filepath.Join(w.dir, fmt.Sprint(lto, made))
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("%s of the link: %w", e.file, err)
		}
		o, err := newLinkedObject(e.file, data)
		if err != nil {
			return nil, err
		}
		objects = append(objects, o)
	}
	return objects, nil
}

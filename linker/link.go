package linker

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// Image is one linked kernel.
type Image struct {
	Path   string // valid until the worker links again or is closed
	Digest string // SHA-256 of vmlinux, hex
}

// LinkError is a layout that does not link: a property of the layout, not of
// the machine.
type LinkError struct {
	Reason string // in the linker's own words, one line
	Log    string // all that the link printed
}

func (e *LinkError) Error() string { return e.Reason }

// LayoutFault tells whether the linker script or lld itself failed for the
// addresses, which another strategy of padding can avoid: the location
// counter, an assertion (SRSO), or lld dying.
func (e *LinkError) LayoutFault() bool { return layoutFault.MatchString(e.Log) }

var layoutFault = regexp.MustCompile(`unable to move location counter|won't alias|ASSERT|assertion|` + lldDied +
	`|section .* overlaps|out of range|` + inconsistent)

const (
	lldDied      = `PLEASE submit a bug report|Stack dump:|Segmentation fault|Aborted`
	inconsistent = `Inconsistent kallsyms data`
)

// linkerSaid tells a link that failed for the layout from one that failed for
// the machine: a missing tool, memory, a killed process.
var linkerSaid = regexp.MustCompile(`ld\.lld\S*: error|` + lldDied + `|` + inconsistent)

// Worker links plans one after the other in a folder of its own, full of
// links to the build. Several workers link at the same time.
type Worker struct {
	kernel *Kernel
	dir    string
}

// NewWorker makes a folder to link in.
func (p *Kernel) NewWorker() (*Worker, error) {
	// ".." from here must be the source, as it is from the build.
	dir, err := os.MkdirTemp(p.Source, workerPrefix)
	if err != nil {
		return nil, err
	}
	w := &Worker{p, dir}
	entries, err := os.ReadDir(p.Build)
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	for _, e := range entries {
		if written.MatchString(e.Name()) {
			continue
		}
		if err := os.Symlink(filepath.Join(p.Build, e.Name()), filepath.Join(dir, e.Name())); err != nil {
			return nil, errors.Join(err, w.Close())
		}
	}
	if p.Image == "bzImage" {
		if err := w.bootFolder(); err != nil {
			return nil, errors.Join(err, w.Close())
		}
	}
	return w, nil
}

// written are the files that a link writes, or that stand for ones that it
// does: a link to them would write into the build.
var written = regexp.MustCompile(`^(\.?vmlinux(\.(o|map|relocs|unstripped|d|cmd|unstripped\.cmd|bin))?|\.tmp_vmlinux.*|\.btf\..*|System\.map|\.vmlinux\..*\.cmd|link-.*)$`)

// Close removes the folder and the image in it.
func (w *Worker) Close() error { return os.RemoveAll(w.dir) }

// VMLinux is the ELF image, with its symbols, of what was linked last.
func (w *Worker) VMLinux() string { return filepath.Join(w.dir, w.kernel.output()) }

// Link links a plan. The error is a *LinkError if the layout does not link.
func (w *Worker) Link(ctx context.Context, plan Plan) (Image, error) {
	if len(plan.Paddings) > 0 {
		layout, err := w.kernel.Layout(ctx)
		if err != nil {
			return Image{}, err
		}
		padding, err := endings(w.kernel.object, layout, plan.Paddings)
		if err != nil {
			return Image{}, err
		}
		return w.link(ctx, padding, plan.Flag)
	}
	return w.link(ctx, nil, plan.Flag)
}

func (w *Worker) link(ctx context.Context, padding map[int]uint64, flag *uint32, extra ...string) (Image, error) {
	p := w.kernel
	object := filepath.Join(w.dir, "vmlinux.o")
	if err := os.RemoveAll(object); err != nil {
		return Image{}, err
	}
	if len(padding) == 0 {
		if err := os.Symlink(filepath.Join(p.Build, "vmlinux.o"), object); err != nil {
			return Image{}, err
		}
	} else if err := p.object.writePadded(object, padding); err != nil {
		return Image{}, fmt.Errorf("padding vmlinux.o: %w", err)
	}
	env := p.env
	if flag != nil {
		env = append(env[:len(env):len(env)], fmt.Sprint("UNLUCKY_SEED=", *flag))
	}
	args := append([]string(nil), p.args...)
	args[0] += " --threads=1" // as fast, and leaves the other CPUs to the other workers
	args[2] = strings.Join(append([]string{args[2]}, extra...), " ")
	var log bytes.Buffer
	run := func() error {
		log.Reset()
		return command(ctx, w.dir, env, &log, append([]string{"sh", p.script()}, args...)...)
	}
	err := run()
	if err != nil && bytes.Contains(log.Bytes(), []byte(inconsistent)) {
		env = append(env[:len(env):len(env)], "KALLSYMS_EXTRA_PASS=1") // as the script advises
		err = run()
	}
	if ctx.Err() != nil {
		return Image{}, ctx.Err()
	}
	if err != nil {
		if bytes.Contains(log.Bytes(), []byte("No space left on device")) {
			return Image{}, hint(fmt.Errorf("linking in %s: no space left on device", w.dir), "make room there; unlucky clean removes prepared kernels")
		}
		if !linkerSaid.Match(log.Bytes()) {
			return Image{}, fmt.Errorf("link-vmlinux.sh: %w%s", err, indentTail(log.Bytes(), 8))
		}
		return Image{}, &LinkError{linkReason(log.Bytes(), err), log.String()}
	}
	image := Image{Path: w.VMLinux()}
	if image.Digest, err = fileDigest(image.Path); err != nil {
		return Image{}, err
	}
	if p.Image == "bzImage" {
		if image.Path, err = w.compress(ctx); err != nil {
			return Image{}, err
		}
	}
	return image, nil
}

// output is the image that the script writes.
func (p *Kernel) output() string {
	if len(p.args) > 3 {
		return p.args[3] // from 6.15 on, vmlinux or vmlinux.unstripped
	}
	return "vmlinux"
}

// linkReason is the first error of a failed link, in one line.
func linkReason(log []byte, err error) string {
	lines := bufio.NewScanner(bytes.NewReader(log))
	var last string
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if strings.Contains(line, "error:") || strings.Contains(line, "PLEASE submit a bug report") ||
			strings.Contains(line, "Inconsistent kallsyms data") {
			return line
		}
		if line != "" {
			last = line
		}
	}
	return fmt.Sprintf("%s (%v)", last, err)
}

// minSections is the number of text input sections below which padding them
// says nothing: a kernel without sections per function has one.
const minSections = 100

// Layout is the baseline's: its input sections in output order. The first
// call links it.
func (p *Kernel) Layout(ctx context.Context) ([]Section, error) {
	p.layoutMu.Lock()
	defer p.layoutMu.Unlock()
	if p.layout != nil {
		return p.layout, nil
	}
	w, err := p.NewWorker()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	if _, err := w.link(ctx, nil, nil, "-Map=layout.map"); err != nil {
		return nil, fmt.Errorf("linking the baseline: %w", err)
	}
	linkMap, err := os.Open(filepath.Join(w.dir, "layout.map"))
	if errors.Is(err, os.ErrNotExist) { // CONFIG_VMLINUX_MAP has the last word
		linkMap, err = os.Open(filepath.Join(w.dir, p.output()+".map"))
	}
	if err != nil {
		return nil, err
	}
	defer linkMap.Close()
	image, err := elf.Open(filepath.Join(w.dir, p.output()))
	if err != nil {
		return nil, err
	}
	defer image.Close()
	layout, err := readLayout(linkMap, "vmlinux.o", image)
	if err != nil {
		return nil, err
	}
	text := 0
	for _, s := range layout {
		if s.Text {
			text++
		}
	}
	if text < minSections {
		return nil, hint(fmt.Errorf("this kernel's link sees %d text input sections: there is nothing to pad between", text),
			"enable LTO_CLANG_THIN, which leaves a section per function; without it vmlinux.a (or one merged .text, with X86_KERNEL_IBT) is linked")
	}
	p.layout = layout
	return layout, nil
}

// Tables counts the arrays that the linker builds between a __start_ and a
// __stop_ symbol. Padding inside one breaks a correct program, so padding
// every section of an image that has some is not to be believed.
func (p *Kernel) Tables() (int, error) {
	symbols, err := os.ReadFile(filepath.Join(p.Build, "System.map"))
	if err != nil {
		return 0, err
	}
	start := map[string]bool{}
	for _, m := range tableSymbol.FindAllSubmatch(symbols, -1) {
		start[string(m[1])+string(m[2])] = true
	}
	n := 0
	for name := range start {
		if rest, ok := strings.CutPrefix(name, "start_"); ok && start["stop_"+rest] {
			n++
		}
	}
	return n, nil
}

var tableSymbol = regexp.MustCompile(`(?m) __(start_|stop_)(\S+)$`)

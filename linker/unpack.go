package linker

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"

	"unlucky/arch"
	"unlucky/host"
	"unlucky/layout"
	"unlucky/linker/kbuild"
)

// archive is a packed kernel that is read.
type archive struct {
	path string
	file *os.File
	zstd *zstd.Decoder
	tar  *tar.Reader
}

func openArchive(path string) (_ *archive, err error) {
	a := &archive{path: path}
	if a.file, err = os.Open(path); err != nil {
		return nil, err
	}
	if info, err := a.file.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("%s is no file", path), err, a.file.Close())
	}
	if a.zstd, err = zstd.NewReader(a.file, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(64<<20)); err != nil {
		return nil, errors.Join(err, a.file.Close())
	}
	a.tar = tar.NewReader(io.LimitReader(a.zstd, maxPacked+maxManifest+(maxPackedFiles+2)<<10)) // two blocks for each
	return a, nil
}

func (a *archive) Close() error {
	a.zstd.Close()
	return a.file.Close()
}

// bad is an error of reading the archive.
func (a *archive) bad(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("it is cut short")
	}
	return host.Hint(fmt.Errorf("%s is no whole packed kernel: %w", a.path, err), "unlucky prepare writes such files")
}

// next is the next file of the archive, which must be one of that name and size.
func (a *archive) next(name string, bytes int64) error {
	h, err := a.tar.Next()
	switch {
	case err != nil:
		return a.bad(err)
	case h.Typeflag != tar.TypeReg || h.Name != name:
		return a.bad(fmt.Errorf("it has %q where %s should be", h.Name, name))
	case bytes >= 0 && h.Size != bytes || h.Size > maxManifest && bytes < 0:
		return a.bad(fmt.Errorf("its %s has %d bytes", name, h.Size))
	}
	return nil
}

// manifest reads the first file of the archive.
func (a *archive) manifest() (m manifest, err error) {
	if err := a.next(manifestName, -1); err != nil {
		return m, err
	}
	data, err := io.ReadAll(a.tar)
	if err != nil {
		return m, a.bad(err)
	}
	m, err = parseManifest(data)
	if v := otherForm(0); errors.As(err, &v) {
		return m, host.Hint(fmt.Errorf("%s is a packed kernel of form %d; this unlucky reads form %d", a.path, int(v), packVersion), "pack it again, or use the unlucky that packed it")
	}
	if err != nil {
		return m, a.bad(fmt.Errorf("%s: %w", manifestName, err))
	}
	return m, nil
}

// unpack writes the files that follow the manifest below dir, which it makes.
func (a *archive) unpack(ctx context.Context, m manifest, dir string, progress kbuild.Progress) error {
	var total, done int64
	for _, f := range m.Files {
		total += f.Bytes
	}
	for _, f := range m.Files {
		if err := a.next(f.Name, f.Bytes); err != nil {
			return err
		}
		to := filepath.Join(dir, f.Name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		mode := os.FileMode(0o644)
		if f.Program {
			mode = 0o755
		}
		out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
		if err != nil {
			return err
		}
		sum := sha256.New()
		read := &kbuild.ProgressReader{Reader: a.tar, Report: func(n int64) { progress("unpacking the kernel", done+n, total) }}
		// What fails to be read is the archive's fault, what fails to be written the disk's.
		_, err = io.Copy(io.MultiWriter(sum, writer{out}), read)
		if err = errors.Join(err, out.Close()); err != nil {
			if errors.As(err, new(writeError)) {
				return err
			}
			return a.bad(err)
		}
		if hex.EncodeToString(sum.Sum(nil)) != f.Digest {
			return a.bad(fmt.Errorf("%s is another than was packed", f.Name))
		}
		done += f.Bytes
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if h, err := a.tar.Next(); err == nil {
		return a.bad(fmt.Errorf("%q is not in its %s", h.Name, manifestName))
	} else if err != io.EOF {
		return a.bad(err)
	}
	return nil
}

// writer marks what a disk says.
type writer struct{ *os.File }

type writeError struct{ error }

func (e writeError) Unwrap() error { return e.error }

func (w writer) Write(b []byte) (int, error) {
	n, err := w.File.Write(b)
	if err != nil {
		err = writeError{err}
	}
	return n, err
}

// Unpack returns a kernel that was packed, unpacking it below cache if it is not
// there yet. It takes the lld that the kernel was packed with, and nothing else; where that
// is not there, it takes the templates that the kernel carries.
// Its folder stays locked until Close.
func Unpack(ctx context.Context, cache, path string, progress kbuild.Progress) (*Kernel, error) {
	if progress == nil {
		progress = func(string, int64, int64) {}
	}
	a, err := openArchive(path)
	if err != nil {
		return nil, err
	}
	defer a.Close()
	m, err := a.manifest()
	if err != nil {
		return nil, err
	}
	digest, err := kbuild.FileDigest(path)
	if err != nil {
		return nil, err
	}
	tools, noLLD := kbuild.FindLLD(ctx, m.LLD)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if noLLD != nil {
		if noLLD = fmt.Errorf("%s was packed with lld %s: %w", path, m.LLD, noLLD); len(m.Templates) == 0 {
			return nil, noLLD
		}
		tools.LLD = m.LLD
	}
	tools.Clang, tools.GCC = m.Clang, m.GCC
	b := kbuild.NewBuild(filepath.Join(cache, "packed-"+digest[:12]), tools)
	b.Image, b.Digest = cmp.Or(m.Flat, arch.VMLinux), m.Object
	p := &Kernel{Build: b, packed: &m, noLLD: noLLD, flat: m.Flat != ""}
	if err := p.Take(ctx, progress); err != nil {
		return nil, err
	}
	if err := p.unpack(ctx, a, progress); err != nil {
		p.Close()
		return nil, kbuild.CacheFull(err, cache)
	}
	return p, nil
}

// unpack makes the kernel's folder what its archive has, unless it is so.
func (p *Kernel) unpack(ctx context.Context, a *archive, progress kbuild.Progress) error {
	for _, base := range []string{p.Dir, p.Source, host.MemoryDir} {
		host.RemoveRooms(base)
	}
	if !p.whole() {
		if !p.Alone() {
			return host.Hint(fmt.Errorf("the packed kernel in %s is damaged and in use", p.Dir), "stop the other unlucky, then run this again")
		}
		part := p.Source + ".part"
		if err := errors.Join(p.Forget(), os.RemoveAll(p.Source), os.RemoveAll(part)); err != nil {
			return err
		}
		if err := a.unpack(ctx, *p.packed, part, progress); err != nil {
			return errors.Join(err, os.RemoveAll(part))
		}
		if err := errors.Join(os.Rename(part, p.Source), p.WriteState()); err != nil {
			return err
		}
	}
	var err error
	if p.object, err = openObject(filepath.Join(p.Objtree, "vmlinux.o")); err != nil {
		return err
	}
	if p.Arch = p.object.arch; p.Arch == nil {
		return fmt.Errorf("%s: an object of no architecture that is known", p.object.path)
	}
	one := &onePass{links: p.packed.Links, sort: p.packed.Sort, objects: map[string][]byte{}}
	for _, argv := range one.links {
		argv[0] = p.Linker()
	}
	for _, name := range p.packed.Made {
		if one.objects[name], err = os.ReadFile(filepath.Join(p.Objtree, name)); err != nil {
			return err
		}
	}
	if p.packed.BTFIDs != "" {
		if one.btfIDs, err = os.ReadFile(filepath.Join(p.Objtree, p.packed.BTFIDs)); err != nil {
			return err
		}
	}
	p.onePass.how = one
	p.Env = host.Environment(p.PATH())
	return p.Ready()
}

// whole tells whether all files of a packed kernel are in its folder as they
// were packed.
func (p *Kernel) whole() bool {
	if s, err := p.ReadState(); err != nil || s.Object != p.packed.Object {
		return false
	}
	for _, f := range p.packed.Files {
		if digest, err := kbuild.FileDigest(filepath.Join(p.Source, f.Name)); err != nil || digest != f.Digest {
			return false
		}
	}
	return true
}

// More returns the contents of one of the files that were packed beside the
// kernel.
func (p *Kernel) More(name string) ([]byte, error) {
	if p.packed == nil || !slices.ContainsFunc(p.packed.Files, func(f packedFile) bool { return f.Name == name }) {
		return nil, fmt.Errorf("the packed kernel has no %s", name)
	}
	return os.ReadFile(filepath.Join(p.Source, name))
}

// packedBaseline links the baseline of a packed kernel, with a link map, and
// reads the table of kallsyms off it.
func (w *Worker) packedBaseline(ctx context.Context) error {
	p := w.kernel
	if p.noLLD != nil {
		err := errors.Join(os.Symlink(p.carried(0, templateImage), w.vmlinux()), os.Symlink(p.carried(0, templateMap), filepath.Join(w.dir, "layout.map")))
		return errors.Join(err, w.packedKallsyms())
	}
	one := *p.onePass.how
	last := len(one.links) - 1
	one.links = append(slices.Clone(one.links[:last]), append(slices.Clone(one.links[last]), "-Map=layout.map"))
	var took Steps
	if err := w.pass(ctx, &one, nil, &took); err != nil {
		return err
	}
	p.took.Store(int64(took.Link))
	digest, err := kbuild.FileDigest(w.vmlinux())
	if err != nil {
		return err
	}
	if digest != p.packed.Image {
		return fmt.Errorf("the packed kernel's image is %.12s, and was %.12s where it was packed: %s is another lld %s", digest, p.packed.Image, p.Linker(), p.LLD)
	}
	return w.packedKallsyms()
}

// packedKallsyms reads the table of kallsyms off the baseline.
func (w *Worker) packedKallsyms() error {
	p := w.kernel
	image, err := openELF(w.vmlinux())
	if err != nil {
		return err
	}
	defer image.Close()
	p.onePass.Lock()
	defer p.onePass.Unlock()
	p.onePass.how.kallsyms, err = readKallsyms(image.File)
	return err
}

// carried is the path of a file of a template that the kernel carries.
func (p *Kernel) carried(n int, what string) string {
	return filepath.Join(p.Source, templateFile(n, what))
}

// Templates is how many a packed kernel carries; with one or more it links without lld.
func (p *Kernel) Templates() int { return len(p.packed.Templates) }

// carriedTemplates makes the templates that a packed kernel carries, once. Without lld they
// are all there is, and what they give was proven when the kernel was packed. The lock of
// the templates is held.
func (w *Worker) carriedTemplates(ctx context.Context) error {
	k := w.kernel
	d := &k.delta
	if k.packed == nil || d.carried {
		return nil
	}
	d.carried = true
	one := *k.onePass.how
	if _, err := w.withMade(&one, one.links[len(one.links)-1]); err != nil {
		return err
	}
	for n, of := range k.packed.Templates {
		i, err := k.readCarried(n)
		if err != nil {
			return err
		}
		i.plan = of.plan()
		t, err := w.templateOf(ctx, &one, i)
		if err != nil {
			return fmt.Errorf("%s in %s is no template of this kernel: %w", templateFile(n, templateImage), k.Source, err)
		}
		d.templates = append(d.templates, t)
		if k.noLLD != nil {
			d.prove(t, padded)
			d.prove(t, ordered)
		}
	}
	if k.noLLD != nil && len(d.templates) > 0 {
		k.note("layouts are linked by delta from the %d images in the kernel file, and none is compared: %v", len(d.templates), k.noLLD)
	}
	return nil
}

// readCarried reads the image of a template.
func (p *Kernel) readCarried(n int) (i linkedImage, err error) {
	var errs [3]error
	i.finished, errs[0] = os.ReadFile(p.carried(n, templateImage))
	i.raw, errs[1] = os.ReadFile(p.carried(n, templateRaw))
	i.linkMap, errs[2] = os.ReadFile(p.carried(n, templateMap))
	if err := errors.Join(errs[:]...); err != nil {
		return i, err
	}
	if len(i.raw) == len(i.finished) {
		subtle.XORBytes(i.raw, i.raw, i.finished)
	}
	return i, nil
}

// linkPacked links in one pass alone: there is no script to fall back to.
func (w *Worker) linkPacked(ctx context.Context, plan layout.Plan) (image Image, err error) {
	if noLLD := w.kernel.noLLD; noLLD != nil {
		return image, fmt.Errorf("a layout takes lld, as none of the images in the kernel file gives it: %w", noLLD)
	}
	if _, err := w.kernel.baseline(ctx); err != nil {
		return image, err
	}
	one := w.kernel.onePass.how
	image.By = Pass
	if err = w.pass(ctx, one, plan.Flag, &image.Steps); err == nil {
		if w.kernel.By == Script {
			image.SystemMap, err = w.systemMap(w.vmlinux())
		}
		if err == nil {
			err = w.finish(ctx, &image)
		}
		return image, err
	}
	switch {
	case ctx.Err() != nil || isMachine(err):
		return image, err
	case !errors.As(err, new(*LinkError)):
		return image, host.Hint(fmt.Errorf("a layout takes the whole link-vmlinux.sh, which a packed kernel has not: %w", err), "link it where the kernel was prepared, without -kernel")
	}
	// In the words of the first link that fails, as the script would.
	for n := range one.links[:len(one.links)-1] {
		if _, first := w.lld(ctx, one, n, plan.Flag); first != nil {
			return image, first
		}
	}
	return image, err
}

// systemMap writes the image's System.map, which the script has llvm-nm print: the
// baseline's lines with the addresses of this layout, in their order.
func (w *Worker) systemMap(of string) (string, error) {
	image, err := openELF(of)
	if err != nil {
		return "", err
	}
	defer image.Close()
	now, err := readSymbolTable(image.File)
	if err != nil {
		return "", err
	}
	table := w.kernel.functionsOf().table
	if !table.same(now) {
		return "", errSymbols
	}
	at := places{}
	for i := range table.len() {
		at.add(table, table.name(i), i)
	}
	old, err := os.ReadFile(filepath.Join(w.kernel.Objtree, "System.map"))
	if err != nil {
		return "", err
	}
	type line struct {
		symbol int
		rest   string // type and name
	}
	var lines []line
	for n, text := range strings.Split(strings.TrimSuffix(string(old), "\n"), "\n") {
		hex, rest, _ := strings.Cut(text, " ")
		_, name, _ := strings.Cut(rest, " ")
		address, err := strconv.ParseUint(hex, 16, 64)
		symbol, ok := at[place{name, address}]
		if err != nil || !ok || symbol < 0 {
			return "", fmt.Errorf("line %d of System.map is no symbol of the baseline: %.80q", n+1, text)
		}
		lines = append(lines, line{symbol, rest})
	}
	slices.SortStableFunc(lines, func(a, b line) int { return now.compare(a.symbol, b.symbol) })
	var out bytes.Buffer
	for _, l := range lines {
		fmt.Fprintf(&out, "%016x %s\n", now.address(l.symbol), l.rest)
	}
	path := filepath.Join(w.dir, "System.map")
	return path, os.WriteFile(path, out.Bytes(), 0o644)
}

package linker

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"github.com/klauspost/compress/zstd"
)

// A packed kernel is one file with all that one pass of the linker takes: a tar
// in zstd, of manifest.json and then of the files that it lists. What stands in
// build/ is the kernel's, the others are the caller's. The same kernel gives the
// same bytes.
//
// Whoever links a packed kernel runs a program of it, sorttable, and lld by its
// arguments: it is to be trusted as a kernel tree is. Its reader bounds what it
// takes of disk and memory all the same, as a file may be damaged.

// packVersion is the form of packed kernels that is written and read.
const packVersion = 1

const manifestName = "manifest.json"

// What a packed kernel may have at most: the objects of a distribution's kernel
// with debug information are a third of that, and a link takes some ten files.
const (
	maxPacked      = 4 << 30 // bytes, unpacked
	maxPackedFiles = 256
	maxManifest    = 1 << 20 // bytes
)

// manifest says what a packed kernel is.
type manifest struct {
	Version int          `json:"unlucky-kernel"`
	Clang   string       `json:"clang"`
	LLD     string       `json:"lld"`
	Object  string       `json:"object"` // digest of vmlinux.o
	Image   string       `json:"image"`  // digest of the baseline's
	Output  string       `json:"output"` // the file that the script links
	Links   [][]string   `json:"links"`  // of the script, in their order; one pass is the last
	Made    []string     `json:"made"`   // by the script, for its links
	Sort    []string     `json:"sort"`   // sorttable's call, if there is one
	Files   []packedFile `json:"files"`  // sorted by name
}

// packedFile is one file of a packed kernel.
type packedFile struct {
	Name    string `json:"name"`
	Bytes   int64  `json:"bytes"`
	Digest  string `json:"sha256"`
	Program bool   `json:"program,omitempty"`
}

// Pack writes the kernel, as a file that Open reads, with some more files of
// which it takes the contents by name. The error tells that this kernel can't be
// linked in one pass, or that its link takes more than the build.
func (p *Kernel) Pack(ctx context.Context, out io.Writer, more map[string][]byte, progress Progress) error {
	if p.packed != nil {
		return errors.New("this kernel is packed already")
	}
	if p.Image != "vmlinux" {
		return hint(fmt.Errorf("a %s is made by the kernel's own makefiles, which can't be packed", p.Image), "use image: vmlinux")
	}
	if progress == nil {
		progress = func(string, int64, int64) {}
	}
	progress("linking the baseline by the whole link-vmlinux.sh", 0, 0)
	m, made, err := p.manifest(ctx)
	if err != nil {
		return err
	}
	contents := map[string][]byte{}
	for name, data := range made {
		contents[buildName+"/"+name] = data
	}
	maps.Copy(contents, more)
	var total int64
	for _, f := range m.Files {
		total += f.Bytes
	}
	for name, data := range contents {
		sum := sha256.Sum256(data)
		m.Files = append(m.Files, packedFile{Name: name, Bytes: int64(len(data)), Digest: hex.EncodeToString(sum[:])})
		total += int64(len(data))
	}
	slices.SortFunc(m.Files, func(a, b packedFile) int { return strings.Compare(a.Name, b.Name) })
	if err := m.check(); err != nil {
		return fmt.Errorf("this kernel can't be packed: %w", err)
	}
	head, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return err
	}
	// With several encoders the bytes would depend on the machine.
	z, err := zstd.NewWriter(out, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedBetterCompression))
	if err != nil {
		return err
	}
	w := tar.NewWriter(z)
	var done int64
	add := func(f packedFile, from io.Reader) error {
		mode := int64(0o644)
		if f.Program {
			mode = 0o755
		}
		err := w.WriteHeader(&tar.Header{Name: f.Name, Size: f.Bytes, Mode: mode, ModTime: time.Unix(0, 0), Typeflag: tar.TypeReg, Format: tar.FormatUSTAR})
		if err != nil {
			return err
		}
		read := &progressReader{r: from, report: func(n int64) { progress("packing the kernel", done+n, total) }}
		if _, err = io.Copy(w, read); err == nil {
			err = ctx.Err()
		}
		done += f.Bytes
		return err
	}
	head = append(head, '\n')
	if err := add(packedFile{Name: manifestName, Bytes: int64(len(head))}, bytes.NewReader(head)); err != nil {
		return err
	}
	for _, f := range m.Files {
		from := io.Reader(bytes.NewReader(contents[f.Name]))
		if _, ok := contents[f.Name]; !ok {
			file, err := os.Open(filepath.Join(p.Build, strings.TrimPrefix(f.Name, buildName+"/")))
			if err != nil {
				return err
			}
			defer file.Close()
			from = file
		}
		if err := add(f, from); err != nil {
			return err
		}
	}
	return errors.Join(w.Close(), z.Close())
}

// manifest links the baseline by the whole script, and tells what one pass takes
// of it: the files of the build, and the contents of those that the script made.
func (p *Kernel) manifest(ctx context.Context) (m manifest, made map[string][]byte, err error) {
	w, err := p.NewWorker()
	if err != nil {
		return m, nil, err
	}
	defer w.Close()
	if err := w.takeObject(edit{}); err != nil {
		return m, nil, err
	}
	var trace bytes.Buffer
	if _, err := w.script(ctx, nil, &trace); err != nil {
		return m, nil, fmt.Errorf("linking the baseline: %w", err)
	}
	way, err := w.findShortcut(trace.Bytes())
	if err != nil {
		return m, nil, hint(fmt.Errorf("this kernel can't be linked in one pass: %w", err), "only a kernel that needs no more than lld can be packed")
	}
	m = manifest{Version: packVersion, Clang: p.Clang, LLD: p.LLD, Object: p.Digest, Output: p.output(), Links: way.links, Sort: way.sort}
	if m.Image, err = fileDigest(w.vmlinux()); err != nil {
		return m, nil, err
	}
	names := map[string]bool{"vmlinux.o": true, "System.map": true}
	var words []string // that may be files
	if way.sort != nil {
		words = append(words, way.sort[0])
	}
	for _, argv := range way.links {
		words = append(words, argv[1:]...)
	}
	if made, err = w.madeFor(words); err != nil {
		return m, nil, err
	}
	for _, file := range words {
		if _, value, ok := strings.Cut(file, "="); ok && strings.HasPrefix(file, "-") {
			file = value
		}
		if filepath.IsAbs(file) {
			return m, nil, fmt.Errorf("its link takes %s, which is outside the build", file)
		}
		info, err := os.Stat(filepath.Join(p.Build, file))
		if file = filepath.Clean(file); err == nil && info.Mode().IsRegular() && !written.MatchString(file) {
			names[file] = true
		}
	}
	for i := range m.Links {
		m.Links[i] = append([]string{"ld.lld"}, m.Links[i][1:]...)
	}
	m.Made = slices.Sorted(maps.Keys(made))
	for name := range names {
		f := packedFile{Name: buildName + "/" + name}
		info, err := os.Stat(filepath.Join(p.Build, name))
		if err != nil {
			return m, nil, err
		}
		f.Bytes, f.Program = info.Size(), info.Mode()&0o111 != 0 && m.Sort != nil && name == filepath.Clean(m.Sort[0])
		if f.Digest, err = fileDigest(filepath.Join(p.Build, name)); err != nil {
			return m, nil, err
		}
		m.Files = append(m.Files, f)
	}
	return m, made, nil
}

// check checks all of a manifest that paths, allocations and lookups follow.
func (m *manifest) check() error {
	if len(m.Files) > maxPackedFiles {
		return fmt.Errorf("it has %d files, at most %d are taken", len(m.Files), maxPackedFiles)
	}
	var total int64
	names := map[string]bool{}
	for i, f := range m.Files {
		switch {
		case !plainPath.MatchString(f.Name) || path.Clean(f.Name) != f.Name || !filepath.IsLocal(f.Name) || f.Name == manifestName:
			return fmt.Errorf("%q is no name for one of its files", f.Name)
		case i > 0 && m.Files[i-1].Name >= f.Name:
			return fmt.Errorf("its files are not in order: %s", f.Name)
		case f.Bytes < 0 || f.Bytes > maxPacked-total:
			return fmt.Errorf("its files have more than %d bytes", int64(maxPacked))
		case !digestForm.MatchString(f.Digest):
			return fmt.Errorf("%s has no digest", f.Name)
		}
		for dir := path.Dir(f.Name); dir != "."; dir = path.Dir(dir) {
			if names[dir] {
				return fmt.Errorf("%s is a file and a folder", dir)
			}
		}
		total += f.Bytes
		names[f.Name] = true
	}
	for _, name := range append([]string{"vmlinux.o", "System.map"}, m.Made...) {
		if !names[buildName+"/"+name] {
			return fmt.Errorf("it has no %s", name)
		}
	}
	switch {
	case len(m.Links) == 0 || slices.ContainsFunc(m.Links, func(argv []string) bool { return len(argv) < 2 }):
		return errors.New("it has no link")
	case m.Output != "vmlinux" && m.Output != "vmlinux.unstripped":
		return fmt.Errorf("%q is no image", m.Output)
	case m.Sort != nil && (len(m.Sort) < 2 || !filepath.IsLocal(m.Sort[0]) || !names[path.Join(buildName, m.Sort[0])]):
		return errors.New("it has no sorttable")
	case !digestForm.MatchString(m.Object) || !digestForm.MatchString(m.Image) ||
		!versionForm.MatchString(m.LLD) || !versionForm.MatchString(m.Clang):
		return errors.New("its versions and digests are not whole")
	}
	return nil
}

var (
	versionForm = regexp.MustCompile(`\A[0-9]+(\.[0-9]+){1,2}\z`)
	plainPath   = regexp.MustCompile(`\A[A-Za-z0-9._+-]+(/[A-Za-z0-9._+-]+)*\z`)
	digestForm  = regexp.MustCompile(`\A[0-9a-f]{64}\z`)
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
	return hint(fmt.Errorf("%s is no whole packed kernel: %w", a.path, err), "unlucky prepare writes such files")
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
		return m, hint(fmt.Errorf("%s is a packed kernel of form %d; this unlucky reads form %d", a.path, int(v), packVersion), "pack it again, or use the unlucky that packed it")
	}
	if err != nil {
		return m, a.bad(fmt.Errorf("%s: %w", manifestName, err))
	}
	return m, nil
}

// otherForm is the version of a manifest that is not read here.
type otherForm int

func (v otherForm) Error() string { return fmt.Sprintf("form %d", int(v)) }

// parseManifest reads and checks a manifest. It is strict, but for one of another
// form, of which nothing else is read.
func parseManifest(data []byte) (m manifest, err error) {
	var is struct {
		Version int `json:"unlucky-kernel"`
	}
	if err := json.Unmarshal(data, &is); err != nil {
		return m, err
	}
	if is.Version != packVersion {
		return m, otherForm(is.Version)
	}
	in := json.NewDecoder(bytes.NewReader(data))
	in.DisallowUnknownFields()
	if err := in.Decode(&m); err != nil {
		return m, err
	}
	return m, m.check()
}

// unpack writes the files that follow the manifest below dir, which it makes.
func (a *archive) unpack(ctx context.Context, m manifest, dir string, progress Progress) error {
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
		read := &progressReader{r: a.tar, report: func(n int64) { progress("unpacking the kernel", done+n, total) }}
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

// Open returns a kernel that was packed, unpacking it below cache if it is not
// there yet. It takes the lld that the kernel was packed with, and nothing else.
// Its folder stays locked until Close.
func Open(ctx context.Context, cache, path string, progress Progress) (*Kernel, error) {
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
	digest, err := fileDigest(path)
	if err != nil {
		return nil, err
	}
	tools, err := findLinker(ctx, m.LLD)
	if err != nil {
		return nil, fmt.Errorf("%s was packed with lld %s: %w", path, m.LLD, err)
	}
	tools.Clang = m.Clang
	p := &Kernel{Toolchain: tools, Image: "vmlinux", Digest: m.Object, Dir: filepath.Join(cache, "packed-"+digest[:12]), packed: &m}
	p.Source = filepath.Join(p.Dir, "source")
	p.Build = filepath.Join(p.Source, buildName)
	p.lock = flock.New(filepath.Join(p.Dir, "lock"))
	if err := os.MkdirAll(p.Dir, 0o755); err != nil {
		return nil, err
	}
	if err := p.take(ctx, progress); err != nil {
		return nil, err
	}
	if err := p.unpack(ctx, a, progress); err != nil {
		p.Close()
		if isNoSpace(err) {
			err = hint(err, "make room on the disk of %s; unlucky clean removes prepared kernels", cache)
		}
		return nil, err
	}
	return p, nil
}

// unpack makes the kernel's folder what its archive has, unless it is so.
func (p *Kernel) unpack(ctx context.Context, a *archive, progress Progress) error {
	alone := p.lock.Locked()
	for _, base := range []string{p.Dir, p.Source, memoryDir} {
		removeRooms(base)
	}
	if !p.whole() {
		if !alone {
			return hint(fmt.Errorf("the packed kernel in %s is damaged and in use", p.Dir), "stop the other unlucky, then run this again")
		}
		part := p.Source + ".part"
		if err := errors.Join(os.Remove(p.statePath()), os.RemoveAll(p.Source), os.RemoveAll(part)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := a.unpack(ctx, *p.packed, part, progress); err != nil {
			return errors.Join(err, os.RemoveAll(part))
		}
		if err := errors.Join(os.Rename(part, p.Source), p.writeState()); err != nil {
			return err
		}
	}
	var err error
	if p.object, err = openObject(filepath.Join(p.Build, "vmlinux.o")); err != nil {
		return err
	}
	way := &shortcut{links: p.packed.Links, sort: p.packed.Sort, objects: map[string][]byte{}}
	for _, argv := range way.links {
		argv[0] = p.lld()
	}
	for _, name := range p.packed.Made {
		if way.objects[name], err = os.ReadFile(filepath.Join(p.Build, name)); err != nil {
			return err
		}
	}
	p.short.way = way
	p.env = environment(p.path())
	return p.ready(alone)
}

// whole tells whether all files of a packed kernel are in its folder as they
// were packed.
func (p *Kernel) whole() bool {
	if s, err := p.readState(); err != nil || s.Object != p.packed.Object {
		return false
	}
	for _, f := range p.packed.Files {
		if digest, err := fileDigest(filepath.Join(p.Source, f.Name)); err != nil || digest != f.Digest {
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

// findLinker is the lld of a version, of those on the PATH.
func findLinker(ctx context.Context, want string) (Toolchain, error) {
	var found []string
	for _, dir := range programDirs("ld.lld") {
		t := Toolchain{Dir: dir}
		if _, err := exec.LookPath(t.lld()); err != nil {
			continue // it has another name here, of which the linker's errors would begin
		}
		if err := t.inspectLinker(ctx, t.lld()); err != nil {
			return t, err
		}
		if t.LLD == want {
			return t, nil
		}
		found = append(found, t.LLD+" in "+dir)
	}
	here := "there is none here"
	if found != nil {
		here = "here is " + strings.Join(found, ", ")
	}
	return Toolchain{}, hint(errors.New(here+", and another may give other images"), "apt-get install lld-%d, in version %s", major(want), want)
}

// packedBaseline links the baseline of a packed kernel, with a link map, and
// reads the table of kallsyms off it.
func (w *Worker) packedBaseline(ctx context.Context) error {
	p := w.kernel
	way := *p.short.way
	last := len(way.links) - 1
	way.links = append(slices.Clone(way.links[:last]), append(slices.Clone(way.links[last]), "-Map=layout.map"))
	var took Steps
	if err := w.pass(ctx, &way, nil, &took); err != nil {
		return err
	}
	p.took.Store(int64(took.Link))
	digest, err := fileDigest(w.vmlinux())
	if err != nil {
		return err
	}
	if digest != p.packed.Image {
		return fmt.Errorf("the packed kernel's image is %.12s, and was %.12s where it was packed: %s is another lld %s", digest, p.packed.Image, p.lld(), p.LLD)
	}
	image, err := openELF(w.vmlinux())
	if err != nil {
		return err
	}
	defer image.Close()
	p.short.Lock()
	defer p.short.Unlock()
	p.short.way.kallsyms, err = readKallsyms(image.File)
	return err
}

// linkPacked links by the shortcut alone: there is no script to fall back to.
func (w *Worker) linkPacked(ctx context.Context, plan Plan) (image Image, err error) {
	if _, err := w.kernel.baseline(ctx); err != nil {
		return image, err
	}
	way := w.kernel.short.way
	if err = w.pass(ctx, way, plan.Flag, &image.Steps); err == nil {
		if w.kernel.FullScript {
			image.SystemMap, err = w.systemMap()
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
		return image, hint(fmt.Errorf("a layout takes the whole link-vmlinux.sh, which a packed kernel has not: %w", err), "link it where the kernel was prepared, without -kernel")
	}
	// In the words of the first link that fails, as the script would.
	for n := range way.links[:len(way.links)-1] {
		if _, first := w.lld(ctx, way, n, plan.Flag); first != nil {
			return image, first
		}
	}
	return image, err
}

// systemMap writes the image's System.map, which the script has llvm-nm print: the
// baseline's lines with the addresses of this layout, in their order.
func (w *Worker) systemMap() (string, error) {
	image, err := openELF(w.vmlinux())
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
	old, err := os.ReadFile(filepath.Join(w.kernel.Build, "System.map"))
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

// Prove checks that a packed kernel gives the images that this one, of which it
// was packed, gives by the whole link-vmlinux.sh: of the baseline and of plans.
func (p *Kernel) Prove(ctx context.Context, packed *Kernel, plans []Plan) error {
	if !p.FullScript {
		return errors.New("one pass would be held against itself")
	}
	var workers [2]*Worker
	for i, k := range []*Kernel{p, packed} {
		w, err := k.NewWorker()
		if err != nil {
			return err
		}
		defer w.Close()
		workers[i] = w
	}
	for n, plan := range append([]Plan{{}}, plans...) {
		var gave [2]string
		for i, w := range workers {
			image, err := w.Link(ctx, plan)
			var failed *LinkError
			switch {
			case errors.As(err, &failed) && n > 0:
				gave[i] = "no image: " + failed.Reason
			case err != nil:
				return err
			default:
				gave[i] = image.Digest
				if err := image.Remove(); err != nil {
					return err
				}
			}
		}
		if gave[0] != gave[1] {
			return fmt.Errorf("one pass of the linker does not give the images of this kernel: %s, by the script %s", gave[1], gave[0])
		}
	}
	return nil
}

package linker

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"unlucky/arch"
	"unlucky/host"
	"unlucky/layout"
	"unlucky/linker/kbuild"
)

// Pack writes the kernel, as a file that Unpack reads, with some more files of
// which it takes the contents by name. It returns plans that take each of the templates
// in the file, for Prove. The error tells that this kernel can't be
// linked in one pass, or that its link takes more than the build.
func (p *Kernel) Pack(ctx context.Context, out io.Writer, more map[string][]byte, progress kbuild.Progress) ([]layout.Plan, error) {
	if p.packed != nil {
		return nil, errors.New("this kernel is packed already")
	}
	if p.byMakefiles() {
		return nil, host.Hint(fmt.Errorf("a %s is made by the kernel's own makefiles, which can't be packed", p.Image), "use image: %s", arch.VMLinux)
	}
	if progress == nil {
		progress = func(string, int64, int64) {}
	}
	progress("linking the baseline by the whole link-vmlinux.sh", 0, 0)
	m, made, plans, err := p.manifest(ctx, progress)
	if err != nil {
		return nil, err
	}
	contents := maps.Clone(more)
	maps.Copy(contents, made)
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
		return nil, fmt.Errorf("this kernel can't be packed: %w", err)
	}
	head, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return nil, err
	}
	// With several encoders the bytes would depend on the machine.
	z, err := zstd.NewWriter(out, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedBetterCompression))
	if err != nil {
		return nil, err
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
		read := &kbuild.ProgressReader{Reader: from, Report: func(n int64) { progress("packing the kernel", done+n, total) }}
		if _, err = io.Copy(w, read); err == nil {
			err = ctx.Err()
		}
		done += f.Bytes
		return err
	}
	head = append(head, '\n')
	if err := add(packedFile{Name: manifestName, Bytes: int64(len(head))}, bytes.NewReader(head)); err != nil {
		return nil, err
	}
	for _, f := range m.Files {
		from := io.Reader(bytes.NewReader(contents[f.Name]))
		if _, ok := contents[f.Name]; !ok {
			file, err := os.Open(p.file(strings.TrimPrefix(f.Name, kbuild.BuildName+"/")))
			if err != nil {
				return nil, err
			}
			defer file.Close()
			from = file
		}
		if err := add(f, from); err != nil {
			return nil, err
		}
	}
	return plans, errors.Join(w.Close(), z.Close())
}

// manifest links the baseline by the whole script, and tells what one pass takes
// of it: the files of the build, and the contents of those that are made, by their names in the file.
func (p *Kernel) manifest(ctx context.Context, progress kbuild.Progress) (m manifest, made map[string][]byte, plans []layout.Plan, err error) {
	w, err := p.NewWorker()
	if err != nil {
		return m, nil, nil, err
	}
	defer w.Close()
	if err := w.takeObject(edit{}); err != nil {
		return m, nil, nil, err
	}
	var trace bytes.Buffer
	if _, err := w.script(ctx, nil, &trace); err != nil {
		return m, nil, nil, fmt.Errorf("linking the baseline: %w", err)
	}
	one, err := w.findOnePass(trace.Bytes())
	if err != nil {
		return m, nil, nil, host.Hint(fmt.Errorf("this kernel can't be linked in one pass: %w", err), "only a kernel that needs no more than lld can be packed")
	}
	if one.nm != nil {
		return m, nil, nil, host.Hint(errors.New("this kernel has FUNCTION_TRACER, whose table in each image is sorted by what nm says of it"), "only a kernel without it can be packed")
	}
	m = manifest{Version: packVersion, Clang: p.Clang, GCC: p.GCC, LLD: p.LLD, Object: p.Digest, Output: p.output(), Links: slices.Clone(one.links), Sort: one.sort}
	if p.flat {
		m.Flat = p.Image
	}
	if m.Image, err = kbuild.FileDigest(w.vmlinux()); err != nil {
		return m, nil, nil, err
	}
	names := map[string]bool{"vmlinux.o": true, "System.map": true}
	var words []string // that may be files
	if one.sort != nil {
		words = append(words, one.sort[0])
	}
	for _, argv := range one.links {
		words = append(words, argv[1:]...)
	}
	objects, err := w.madeFor(words)
	if err != nil {
		return m, nil, nil, err
	}
	for _, file := range words {
		if _, value, ok := strings.Cut(file, "="); ok && strings.HasPrefix(file, "-") {
			file = value
		}
		if filepath.IsAbs(file) {
			return m, nil, nil, fmt.Errorf("its link takes %s, which is outside the build", file)
		}
		info, err := os.Stat(filepath.Join(p.Objtree, file))
		if file = filepath.Clean(file); err == nil && info.Mode().IsRegular() && !written.MatchString(file) {
			names[file] = true
		}
	}
	for i := range m.Links {
		m.Links[i] = append([]string{"ld.lld"}, m.Links[i][1:]...)
	}
	m.Made, made = slices.Sorted(maps.Keys(objects)), map[string][]byte{}
	if one.btfIDs != nil {
		m.BTFIDs = btfIDs[1:]
		objects[m.BTFIDs] = one.btfIDs
	}
	progress("linking the images that layouts without lld follow from", 0, 0)
	if plans, err = w.packTemplates(ctx, one, &m, objects, made); err != nil {
		return m, nil, nil, err
	}
	for name, data := range objects {
		made[kbuild.BuildName+"/"+name] = data
	}
	for name := range names {
		f := packedFile{Name: kbuild.BuildName + "/" + name}
		info, err := os.Stat(p.file(name))
		if err != nil {
			return m, nil, nil, err
		}
		f.Bytes, f.Program = info.Size(), info.Mode()&0o111 != 0 && m.Sort != nil && name == filepath.Clean(m.Sort[0])
		if f.Digest, err = kbuild.FileDigest(p.file(name)); err != nil {
			return m, nil, nil, err
		}
		m.Files = append(m.Files, f)
	}
	return m, made, plans, nil
}

// packedSeeds are how many layouts of each kind are placed for the templates that a packed
// kernel carries: 1,580 of 6.12 took 3.
const packedSeeds = 256

// packTemplates puts the templates of this kernel's layouts into made, and what lld makes
// of bitcode for them into objects. Where layouts can't be linked by delta there are none,
// and the reason is told. The plans are of layouts that take them.
func (w *Worker) packTemplates(ctx context.Context, one *onePass, m *manifest, objects, made map[string][]byte) (plans []layout.Plan, err error) {
	k := w.kernel
	if err = k.noDelta(); err == nil && one.mends() {
		err = errMended
	}
	if err == nil {
		plans, err = w.takeTemplates(ctx, one)
	}
	if ctx.Err() != nil || err != nil && isMachine(err) {
		return nil, errors.Join(ctx.Err(), err)
	}
	if err != nil {
		k.note("layouts of the kernel file take lld: %v", err)
		return nil, nil
	}
	for n, t := range k.delta.templates {
		i, err := w.linkTemplate(ctx, one, t.plan)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			linked, err := w.linkedObjects(ctx, one, i.linkMap)
			if err != nil {
				return nil, err
			}
			for _, o := range linked {
				if !exists(filepath.Join(w.dir, o.name)) {
					objects[o.name] = o.data
				}
			}
		}
		subtle.XORBytes(i.raw, i.raw, i.finished)
		made[templateFile(n, templateImage)], made[templateFile(n, templateRaw)], made[templateFile(n, templateMap)] = i.finished, i.raw, i.linkMap
		var of packedTemplate
		for _, p := range t.plan.Paddings {
			of = packedTemplate{p.Section, p.Bytes}
		}
		m.Templates = append(m.Templates, of)
	}
	return plans, nil
}

// takeTemplates makes the templates that layouts of all kinds take, and returns the first
// plan of each kind and template. The error is why one of them has none.
func (w *Worker) takeTemplates(ctx context.Context, one *onePass) (plans []layout.Plan, err error) {
	sections, err := w.kernel.baseline(ctx)
	if err != nil {
		return nil, err
	}
	d, model := &w.kernel.delta, w.kernel.functionsOf().model
	taken := map[provenDelta]bool{}
	d.Lock()
	defer d.Unlock()
	for seed := range uint32(packedSeeds) {
		for _, s := range []layout.Strategy{layout.Text, layout.Cover, layout.Shuffle} {
			plan := s.Plan(seed, sections)
			a, err := model.Arrange(plan)
			if err != nil {
				return nil, err
			}
			p, err := d.fits(a)
			if p == nil && err == nil {
				p, err = w.addTemplate(ctx, one, a)
			}
			if err != nil { // without lld a sweep would end there
				return nil, err
			}
			if of := (provenDelta{p.t, kindOf(plan)}); !taken[of] {
				taken[of] = true
				plans = append(plans, plan)
			}
		}
	}
	return plans, nil
}

// Prove checks that a packed kernel gives the images that this one, of which it
// was packed, gives by the whole link-vmlinux.sh: of the baseline and of plans, and those
// by delta where it carries templates.
func (p *Kernel) Prove(ctx context.Context, packed *Kernel, plans []layout.Plan) error {
	if p.By != Script {
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
	for n, plan := range append([]layout.Plan{{}}, plans...) {
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
				gave[i], err = image.Digest()
				if err := errors.Join(err, image.Remove()); err != nil {
					return err
				}
			}
		}
		if gave[0] != gave[1] {
			return fmt.Errorf("one pass of the linker does not give the images of this kernel: %s, by the script %s", gave[1], gave[0])
		}
		if n > 0 && packed.Templates() > 0 && packed.disproved(plan) {
			return errors.New("the templates in the kernel file do not give the images of this kernel")
		}
	}
	return nil
}

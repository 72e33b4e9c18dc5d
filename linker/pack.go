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

// Pack writes the kernel, as a file that Open reads, with some more files of
// which it takes the contents by name. The error tells that this kernel can't be
// linked in one pass, or that its link takes more than the build.
func (p *Kernel) Pack(ctx context.Context, out io.Writer, more map[string][]byte, progress kbuild.Progress) error {
	if p.packed != nil {
		return errors.New("this kernel is packed already")
	}
	if p.byMakefiles() {
		return host.Hint(fmt.Errorf("a %s is made by the kernel's own makefiles, which can't be packed", p.Image), "use image: %s", arch.VMLinux)
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
		contents[kbuild.BuildName+"/"+name] = data
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
		read := &kbuild.ProgressReader{Reader: from, Report: func(n int64) { progress("packing the kernel", done+n, total) }}
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
			file, err := os.Open(p.file(strings.TrimPrefix(f.Name, kbuild.BuildName+"/")))
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
	one, err := w.findOnePass(trace.Bytes())
	if err != nil {
		return m, nil, host.Hint(fmt.Errorf("this kernel can't be linked in one pass: %w", err), "only a kernel that needs no more than lld can be packed")
	}
	if one.nm != nil {
		return m, nil, host.Hint(errors.New("this kernel has FUNCTION_TRACER, whose table in each image is sorted by what nm says of it"), "only a kernel without it can be packed")
	}
	m = manifest{Version: packVersion, Clang: p.Clang, GCC: p.GCC, LLD: p.LLD, Object: p.Digest, Output: p.output(), Links: one.links, Sort: one.sort}
	if p.flat {
		m.Flat = p.Image
	}
	if m.Image, err = kbuild.FileDigest(w.vmlinux()); err != nil {
		return m, nil, err
	}
	names := map[string]bool{"vmlinux.o": true, "System.map": true}
	var words []string // that may be files
	if one.sort != nil {
		words = append(words, one.sort[0])
	}
	for _, argv := range one.links {
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
		info, err := os.Stat(filepath.Join(p.Objtree, file))
		if file = filepath.Clean(file); err == nil && info.Mode().IsRegular() && !written.MatchString(file) {
			names[file] = true
		}
	}
	for i := range m.Links {
		m.Links[i] = append([]string{"ld.lld"}, m.Links[i][1:]...)
	}
	m.Made = slices.Sorted(maps.Keys(made))
	if one.btfIDs != nil {
		m.BTFIDs = btfIDs[1:]
		made[m.BTFIDs] = one.btfIDs
	}
	for name := range names {
		f := packedFile{Name: kbuild.BuildName + "/" + name}
		info, err := os.Stat(p.file(name))
		if err != nil {
			return m, nil, err
		}
		f.Bytes, f.Program = info.Size(), info.Mode()&0o111 != 0 && m.Sort != nil && name == filepath.Clean(m.Sort[0])
		if f.Digest, err = kbuild.FileDigest(p.file(name)); err != nil {
			return m, nil, err
		}
		m.Files = append(m.Files, f)
	}
	return m, made, nil
}

// Prove checks that a packed kernel gives the images that this one, of which it
// was packed, gives by the whole link-vmlinux.sh: of the baseline and of plans.
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
	}
	return nil
}

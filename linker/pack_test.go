package linker

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"unlucky/host"
	"unlucky/layout"
	"unlucky/linker/kbuild"
)

// packKernel packs a kernel into a file.
func packKernel(t *testing.T, k *Kernel) string {
	t.Helper()
	var out bytes.Buffer
	if _, err := k.Pack(t.Context(), &out, map[string][]byte{"initrd": []byte("an initrd")}, nil); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "tiny.kernel.tar.zst")
	if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// onlyLinker leaves nothing on the PATH but ld.lld.
func onlyLinker(t *testing.T, k *Kernel) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Symlink(k.Linker(), filepath.Join(dir, "ld.lld")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
}

// openPacked opens a packed kernel in a cache.
func openPacked(t *testing.T, cache, path string) *Kernel {
	t.Helper()
	k, err := Unpack(t.Context(), cache, path, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	return k
}

// A packed kernel gives the images of the script, with lld and nothing else, and
// says in the script's words why a layout does not link. Packed again it is the
// same file.
func TestPack(t *testing.T) {
	k, _ := tinyKernel(t, "")
	k.By = Script
	path := packKernel(t, k)
	if again := packKernel(t, k); !equalFiles(t, path, again) {
		t.Error("packed again it is another file")
	}
	w, functions := ordering(t, k)
	seed := uint32(7)
	plans := []layout.Plan{{}, pad16(0), {Flag: &seed}, {Order: []string{functions[1], functions[0]}}, {Order: []string{functions[3], functions[1]}, Paddings: pad16(5).Paddings}}
	var want, maps []string
	for _, plan := range plans {
		image, err := w.Link(t.Context(), plan)
		if err != nil {
			t.Fatal(err)
		}
		system, err := os.ReadFile(image.SystemMap)
		if err != nil {
			t.Fatal(err)
		}
		want, maps = append(want, digestOf(t, image)), append(maps, string(system))
	}
	const inWords = outputOf + "echo \"ld.lld: error: $out is on purpose\" >&2; exit 1"
	armed := wrapLinker(t, k, inWords)
	_, wantErr := w.Link(t.Context(), pad16(0))
	os.Remove(armed)

	onlyLinker(t, k)
	p := openPacked(t, t.TempDir(), path)
	p.By = Script // for its System.map
	if p.Digest != k.Digest || p.LLD != k.LLD || p.Clang != k.Clang || p.Randomizes() != k.Randomizes() {
		t.Errorf("opened it is %+v", p.Toolchain)
	}
	if more, err := p.More("initrd"); err != nil || string(more) != "an initrd" {
		t.Errorf("the initrd: %q, %v", more, err)
	}
	if _, err := p.More("nothing"); err == nil {
		t.Error("it has what was not packed")
	}
	tables, err1 := p.Tables()
	built, err2 := k.Tables()
	if tables != built || err1 != nil || err2 != nil {
		t.Errorf("%d tables, want %d (%v, %v)", tables, built, err1, err2)
	}
	v, err := p.NewWorker()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	for n, plan := range plans {
		image, err := v.Link(t.Context(), plan)
		if err != nil {
			t.Fatal(err)
		}
		if digest := digestOf(t, image); digest != want[n] {
			t.Errorf("plan %d: image %.12s, by the script %.12s", n, digest, want[n])
		}
		if system, err := os.ReadFile(image.SystemMap); err != nil || string(system) != maps[n] {
			t.Errorf("plan %d: another System.map (%v)", n, err)
		}
		if err := image.Remove(); err != nil {
			t.Fatal(err)
		}
	}
	var failed, wantFailed *LinkError
	armed = wrapLinker(t, p, inWords)
	_, err = v.Link(t.Context(), pad16(0))
	os.Remove(armed)
	if !errors.As(err, &failed) || !errors.As(wantErr, &wantFailed) || failed.Reason != wantFailed.Reason || !strings.Contains(failed.Reason, ".tmp_vmlinux1") {
		t.Errorf("error %v, by the script %v", err, wantErr)
	}
	p.onePass.how.kallsyms = &kallsyms{} // other symbols than the image's
	if _, err := v.Link(t.Context(), pad16(1)); err == nil || !strings.Contains(err.Error(), "takes the whole link-vmlinux.sh, which a packed kernel has not: the symbols are others") {
		t.Errorf("a layout that one pass does not link: %v", err)
	}
}

func equalFiles(t *testing.T, a, b string) bool {
	t.Helper()
	x, err1 := kbuild.FileDigest(a)
	y, err2 := kbuild.FileDigest(b)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return x == y
}

// What a kernel's link does beside lld can't be packed, and is said or seen.
func TestPackRefuses(t *testing.T) {
	slow(t)
	k, _ := tinyKernel(t, "")
	k.Image = "bzImage"
	var h *host.HintError
	if _, err := k.Pack(t.Context(), io.Discard, nil, nil); !errors.As(err, &h) || h.Hint != "use image: vmlinux" {
		t.Errorf("error %v", err)
	}
	other, _ := tinyKernel(t, "echo >>vmlinux\n")
	other.By = Script
	packed := openPacked(t, t.TempDir(), packKernel(t, other))
	if err := other.Prove(t.Context(), packed, nil); err == nil || !strings.Contains(err.Error(), "the packed kernel's image is") {
		t.Errorf("error %v", err)
	}
	if _, err := packed.Pack(t.Context(), io.Discard, nil, nil); err == nil {
		t.Error("a packed kernel was packed")
	}
	// A script that changes padded layouts only is seen when it is proven.
	plain, _ := tinyKernel(t, "")
	plain.By = Script
	packed = openPacked(t, t.TempDir(), packKernel(t, plain))
	script, err := os.ReadFile(plain.Script())
	if err == nil {
		err = os.WriteFile(plain.Script(), append(script, "if [ ! -L vmlinux.o ]; then echo >>vmlinux; fi\n"...), 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := plain.Prove(t.Context(), packed, nil); err != nil {
		t.Error(err)
	}
	if err := plain.Prove(t.Context(), packed, []layout.Plan{pad16(0)}); err == nil || !strings.Contains(err.Error(), "one pass of the linker does not give the images") {
		t.Errorf("error %v", err)
	}
	plain.By = Pass
	if err := plain.Prove(t.Context(), packed, nil); err == nil {
		t.Error("one pass was held against itself")
	}
}

// firstForm is a packed kernel as they were without templates.
func firstForm(t *testing.T, path string) string {
	t.Helper()
	template := func(name string) bool { return strings.HasPrefix(name, "template-") }
	return repack(t, path, func(m map[string]any, files []packedEntry) []packedEntry {
		m["unlucky-kernel"] = 1
		delete(m, "templates")
		m["files"] = slices.DeleteFunc(m["files"].([]any), func(f any) bool { return template(f.(map[string]any)["name"].(string)) })
		return slices.DeleteFunc(files, func(f packedEntry) bool { return template(f.Name) })
	})
}

// Without the lld that a kernel was packed with, and without templates, that is said.
func TestOpenWithoutLinker(t *testing.T) {
	slow(t)
	k, _ := tinyKernel(t, "")
	path := firstForm(t, packKernel(t, k))
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	var h *host.HintError
	if _, err := Unpack(t.Context(), t.TempDir(), path, nil); !errors.As(err, &h) || !strings.Contains(err.Error(), "was packed with lld "+k.LLD+": there is none here") ||
		h.Hint != fmt.Sprintf("%s, in version %s", host.Install("lld-"+strings.Split(k.LLD, ".")[0]), k.LLD) {
		t.Errorf("error %v", err)
	}
	if err := writeLinker(filepath.Join(dir, "ld.lld"), []byte("#!/bin/sh\necho LLD 1.2.3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Unpack(t.Context(), t.TempDir(), path, nil); err == nil || !strings.Contains(err.Error(), "here is 1.2.3 in "+dir) {
		t.Errorf("error %v", err)
	}
	// One that only calls itself so gives another image of the baseline.
	liar := fmt.Sprintf("#!/bin/sh\n[ $1 = --version ] && echo LLD %s && exit\n[ $1 = --help ] && exit\nexec %s \"$@\" --build-id=0x1234\n", k.LLD, k.Linker())
	if err := writeLinker(filepath.Join(dir, "ld.lld"), []byte(liar), 0o755); err != nil {
		t.Fatal(err)
	}
	p := openPacked(t, t.TempDir(), path)
	if _, err := p.Layout(t.Context()); err == nil || !strings.Contains(err.Error(), "is another lld "+k.LLD) {
		t.Errorf("error %v", err)
	}
}

// A packed kernel is unpacked once, again where it is damaged, and goes as any
// other kernel of the cache does.
func TestOpenCache(t *testing.T) {
	k, _ := tinyKernel(t, "")
	path, cache := packKernel(t, k), t.TempDir()
	var steps []string
	open := func() *Kernel {
		t.Helper()
		steps = nil
		p, err := Unpack(t.Context(), cache, path, func(step string, _, _ int64) { steps = append(steps, step) })
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	p := open()
	if len(steps) == 0 {
		t.Error("unpacking was not told")
	}
	second := open() // at the same time
	if len(steps) > 0 || second.Dir != p.Dir {
		t.Errorf("unpacked again: %q", steps)
	}
	if removed, err := kbuild.Clean(cache, 0); err == nil || len(removed) > 0 {
		t.Errorf("a kernel in use was removed: %v, %v", removed, err)
	}
	second.Close()
	vmlinux := filepath.Join(p.Objtree, "vmlinux.o")
	for what, damage := range map[string]func() error{
		"cut":      func() error { return os.Truncate(vmlinux, 5000) },
		"gone":     func() error { return os.Remove(filepath.Join(p.Source, "initrd")) },
		"no state": func() error { return p.Forget() },
		"nothing":  func() error { return os.RemoveAll(p.Source) },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		if what != "no state" { // which would be waited for
			if _, err := Unpack(t.Context(), cache, path, nil); err == nil || !strings.Contains(err.Error(), "damaged and in use") {
				t.Errorf("%s, in use: %v", what, err)
			}
		}
		p.Close()
		if p = open(); len(steps) == 0 || !p.whole() {
			t.Errorf("%s: not unpacked again", what)
		}
	}
	p.Close()
	if removed, err := kbuild.Clean(cache, 0); err != nil || len(removed) != 1 || removed[0].Dir != p.Dir || removed[0].Bytes == 0 {
		t.Errorf("removed %+v, %v", removed, err)
	}
}

// packedEntry is a file of an archive that is made to be refused.
type packedEntry struct {
	tar.Header
	data []byte
}

// repack writes an archive's files anew, edited.
func repack(t *testing.T, path string, edit func(m map[string]any, files []packedEntry) []packedEntry) string {
	t.Helper()
	a, err := openArchive(path)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	var files []packedEntry
	for {
		h, err := a.tar.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(a.tar)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, packedEntry{*h, data})
	}
	m := map[string]any{}
	if err := json.Unmarshal(files[0].data, &m); err != nil {
		t.Fatal(err)
	}
	files = edit(m, files)
	if m != nil && len(files) > 0 && files[0].Name == manifestName && len(files[0].data) < maxManifest {
		if files[0].data, err = json.Marshal(m); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(t.TempDir(), "hostile.tar.zst")
	f, err := os.Create(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := zstd.NewWriter(f)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	for _, e := range files {
		if e.Size = int64(len(e.data)); e.Typeflag != tar.TypeReg {
			e.Size = 0
		}
		e.Format = tar.FormatUnknown
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if e.Size > 0 {
			if _, err := w.Write(e.data); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return out
}

// Whatever is in a file that is given for a packed kernel, it is refused by its
// name, and nothing of it is left, in the cache or elsewhere.
func TestOpenHostile(t *testing.T) {
	k, _ := tinyKernel(t, "")
	good := packKernel(t, k)
	file := func(m map[string]any, n int) map[string]any { return m["files"].([]any)[n].(map[string]any) }
	type files = []packedEntry
	hostile := map[string]string{ // file -> what is said
		t.TempDir(): "is no file",
		repack(t, good, func(m map[string]any, f files) files { f[1].Name = "../escaped"; return f }):                  `it has "../escaped" where build/`,
		repack(t, good, func(m map[string]any, f files) files { f[1].Typeflag = tar.TypeSymlink; return f }):           "where build/",
		repack(t, good, func(m map[string]any, f files) files { f[1].Typeflag = tar.TypeFifo; return f }):              "where build/",
		repack(t, good, func(m map[string]any, f files) files { return f[:len(f)-1] }):                                 "it is cut short",
		repack(t, good, func(m map[string]any, f files) files { return f[1:] }):                                        "where manifest.json should be",
		repack(t, good, func(m map[string]any, f files) files { return append(f, f[1]) }):                              "is not in its manifest.json",
		repack(t, good, func(m map[string]any, f files) files { f[2].data[99] ^= 1; return f }):                        "is another than was packed",
		repack(t, good, func(m map[string]any, f files) files { f[2].data = f[2].data[1:]; return f }):                 "bytes",
		repack(t, good, func(m map[string]any, f files) files { f[0].data = make([]byte, 2<<20); return f }):           "its manifest.json has 2097152 bytes",
		repack(t, good, func(m map[string]any, f files) files { m["unlucky-kernel"] = 3; return f }):                   "is a packed kernel of form 3; this unlucky reads form 2",
		repack(t, good, func(m map[string]any, f files) files { m["unlucky-kernel"] = "1"; return f }):                 "cannot unmarshal",
		repack(t, good, func(m map[string]any, f files) files { m["more"] = true; return f }):                          `unknown field "more"`,
		repack(t, good, func(m map[string]any, f files) files { m["output"] = "../vmlinux"; return f }):                `"../vmlinux" is no image`,
		repack(t, good, func(m map[string]any, f files) files { m["links"] = nil; return f }):                          "it has no link",
		repack(t, good, func(m map[string]any, f files) files { m["made"] = []string{"../x"}; return f }):              "it has no ../x",
		repack(t, good, func(m map[string]any, f files) files { m["sort"] = []string{"/bin/sh", "x"}; return f }):      "it has no sorttable",
		repack(t, good, func(m map[string]any, f files) files { m["lld"] = "\x1b[2J"; return f }):                      "versions and digests are not whole",
		repack(t, good, func(m map[string]any, f files) files { file(m, 0)["name"] = "build/../../x"; return f }):      "is no name for one of its files",
		repack(t, good, func(m map[string]any, f files) files { file(m, 0)["name"] = "/etc/passwd"; return f }):        "is no name for one of its files",
		repack(t, good, func(m map[string]any, f files) files { file(m, 1)["name"] = "build/System.map/x"; return f }): "is a file and a folder",
		repack(t, good, func(m map[string]any, f files) files { file(m, 1)["name"] = file(m, 0)["name"]; return f }):   "not in order",
		repack(t, good, func(m map[string]any, f files) files { file(m, 0)["bytes"] = 5 << 30; return f }):             "its files have more than",
		repack(t, good, func(m map[string]any, f files) files { file(m, 0)["bytes"] = -1; return f }):                  "its files have more than",
		repack(t, good, func(m map[string]any, f files) files { file(m, 0)["sha256"] = "../x"; return f }):             "has no digest",
		repack(t, good, func(m map[string]any, f files) files { m["templates"] = []any{map[string]any{}}; return f }):  "it has no template-0.image",
		repack(t, good, func(m map[string]any, f files) files {
			m["templates"] = []any{map[string]any{"section": ".text.m"}}
			return f
		}): "template 0 is padded by 0 bytes",
		repack(t, good, func(m map[string]any, f files) files {
			m["templates"] = []any{map[string]any{"bytes": 1 << 40}}
			return f
		}): "template 0 is padded by 1099511627776 bytes",
		repack(t, good, func(m map[string]any, f files) files { m["templates"] = make([]any, 9); return f }): "it has 9 templates, at most 8 are taken",
		repack(t, good, func(m map[string]any, f files) files {
			for range 300 {
				m["files"] = append(m["files"].([]any), file(m, 0))
			}
			return f
		}): "at most 256 are taken",
	}
	whole, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for n, data := range [][]byte{nil, []byte("no zstd"), whole[:9], whole[:200], whole[:len(whole)/2], whole[:len(whole)-30]} {
		path := filepath.Join(dir, fmt.Sprint("cut-", n))
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		hostile[path] = "is no whole packed kernel"
	}
	for path, want := range hostile {
		above := t.TempDir()
		cache := filepath.Join(above, "a", "b", "cache")
		p, err := Unpack(t.Context(), cache, path, nil)
		if err == nil {
			p.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("error %v, want %s: %s", err, path, want)
		}
		filepath.WalkDir(above, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && d.Name() != "lock" {
				t.Errorf("%s: there is %s", want, path)
			}
			return nil
		})
	}
}

// FuzzManifest: any manifest is refused, or names files that stay where they are
// unpacked and are bounded, and is the same when it is written and read again.
func FuzzManifest(f *testing.F) {
	digest := strings.Repeat("0", 64)
	good := manifest{Version: 1, Clang: "22.1.8", LLD: "22.1.8", Object: digest, Image: digest, Output: "vmlinux",
		Links: [][]string{{"ld.lld", "vmlinux.o"}}, Sort: []string{"./scripts/sorttable", "vmlinux"},
		Files: []packedFile{{"build/System.map", 1, digest, false}, {"build/scripts/sorttable", 1, digest, true}, {"build/vmlinux.o", 1, digest, false}}}
	data, err := json.Marshal(good)
	if err != nil {
		f.Fatal(err)
	}
	if _, err := parseManifest(data); err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add(bytes.Replace(data, []byte("build/vm"), []byte("build/../vm"), 1))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := parseManifest(data)
		if err != nil {
			return
		}
		var total int64
		for _, file := range m.Files {
			if !filepath.IsLocal(file.Name) || filepath.Clean(file.Name) != file.Name || file.Bytes < 0 {
				t.Fatalf("%+v is taken", file)
			}
			total += file.Bytes
		}
		if total > maxPacked || len(m.Files) > maxPackedFiles {
			t.Fatalf("%d files of %d bytes", len(m.Files), total)
		}
		once, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseManifest(once)
		if twice, err2 := json.Marshal(again); err != nil || err2 != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%s becomes %s (%v)", once, twice, err)
		}
	})
}

// A packed kernel carries templates: without lld it gives the images of the build by delta,
// and says which layouts it can't.
func TestPackTemplates(t *testing.T) {
	k, notes := deltaKernel(t, "", "", "")
	sections, err := k.Layout(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	plans := randomPlans(sections, 8)
	other := plans[8] // by a template that no seed takes
	plans = append([]layout.Plan{{}}, plans[:8]...)
	want, _ := linkPlans(t, k, Script, plans)
	path := packKernel(t, k)
	if len(*notes) > 0 {
		t.Errorf("notes %q", *notes)
	}
	// One that gives another image is seen before the file is handed out.
	broken := openPacked(t, t.TempDir(), path)
	linkPlans(t, broken, Delta, plans[:2])
	broken.delta.templates[0].fill[0], broken.delta.proven = 0x90, nil
	if err := k.Prove(t.Context(), broken, plans[1:2]); err == nil || !strings.Contains(err.Error(), "the templates in the kernel file do not give the images of this kernel") {
		t.Errorf("error %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	p := openPacked(t, t.TempDir(), path)
	var told []string
	p.Note = func(format string, a ...any) { told = append(told, fmt.Sprintf(format, a...)) }
	for _, by := range []Way{Delta, Script} {
		if got, _ := linkPlans(t, p, by, plans); !slices.Equal(got, want) {
			t.Errorf("images %.12s, by the script %.12s", got, want)
		}
	}
	if len(told) != 1 || !strings.HasPrefix(told[0], fmt.Sprintf("layouts are linked by delta from the %d images in the kernel file, and none is compared: %s", p.Templates(), path+" was packed with lld "+k.LLD)) {
		t.Errorf("notes %q", told)
	}
	w, err := p.NewWorker()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	seed := uint32(1)
	for _, plan := range []layout.Plan{other, {Flag: &seed}} {
		if _, err := w.Link(t.Context(), plan); err == nil || !strings.Contains(err.Error(), "takes lld") {
			t.Errorf("error %v", err)
		}
	}
}

package seeds

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"unlucky/host"
)

func noStep(int64, int64) {}

// unpacked is a folder with all that a bundle needs, and its seed.
func unpacked(t testing.TB) (dir string, f File) {
	dir, f = t.TempDir(), example(t)
	put := func(name, text string) (digest string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256([]byte(text))
		return hex.EncodeToString(sum[:])
	}
	f.Digests.Image = put(VMLinuxFile, strings.Repeat("\x7fELF", 1000))
	f.Digests.Initrd = put(InitrdFile, "070701")
	put(ReportFile, "Subject: it\n")
	put(RunFile, "#!/bin/sh\n")
	put(MapFile, "ffffffff81000000 T _text\n")
	if err := f.Write(filepath.Join(dir, SeedFile), []byte("Oops\n")); err != nil {
		t.Fatal(err)
	}
	return dir, f
}

// entry is one of a tar archive.
type entry struct {
	tar.Header
	text string
}

// entries are those of a bundle of unpacked.
func entries(t testing.TB) (all []entry) {
	dir, f := unpacked(t)
	path := filepath.Join(t.TempDir(), "b")
	if _, err := Pack(t.Context(), dir, f, path, noStep); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	z, err := zstd.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	r := tar.NewReader(z)
	for {
		h, err := r.Next()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, entry{*h, string(text)})
	}
}

// archive is a tar archive of some entries, with what is not in them behind it.
func archive(t testing.TB, all []entry, behind string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range all {
		if e.Typeflag == tar.TypeReg {
			e.Size = int64(len(e.text))
		}
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	b.WriteString(behind)
	return b.Bytes()
}

func compress(data []byte) []byte { return fastest().EncodeAll(data, nil) }

var fastest = sync.OnceValue(func() *zstd.Encoder {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		panic(err)
	}
	return z
})

// What is packed is unpacked; the same gives the same bytes, whenever and
// wherever it is; nothing of this machine is in it.
func TestPack(t *testing.T) {
	dir, f := unpacked(t)
	path := filepath.Join(t.TempDir(), "anything")
	var steps []int64
	packed, err := Pack(t.Context(), dir, f, path, func(done, total int64) { steps = append(steps, done, total) })
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(data); packed.SHA256 != hex.EncodeToString(sum[:]) || packed.Bytes != int64(len(data)) || packed.Path != path {
		t.Errorf("packed %+v, and there are %d bytes, sha256 %x", packed, len(data), sum)
	}
	if n := len(steps); n < 2 || steps[n-2] != steps[n-1] {
		t.Errorf("progress %v", steps)
	}
	if is, err := IsBundle(path); !is || err != nil {
		t.Errorf("IsBundle: %v, %v", is, err)
	}
	if is, err := IsBundle(filepath.Join(dir, SeedFile)); is || err != nil {
		t.Errorf("IsBundle of a seed file: %v, %v", is, err)
	}

	to := t.TempDir()
	got, err := Unpack(t.Context(), path, to, noStep)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(f, got, same); d != "" {
		t.Errorf("another seed (-want +got):\n%s", d)
	}
	if want, got := files(t, dir), files(t, to); !slices.Equal(want, got) {
		t.Errorf("unpacked %v, want %v", got, want)
	}
	later := time.Now().Add(time.Hour)
	if err := errors.Join(os.Chmod(filepath.Join(to, MapFile), 0o600), os.Chtimes(filepath.Join(to, MapFile), later, later)); err != nil {
		t.Fatal(err)
	}
	again, err := Pack(t.Context(), to, got, path, noStep)
	if err != nil || again.SHA256 != packed.SHA256 {
		t.Errorf("packed again: %v, %s, want %s", err, again.SHA256, packed.SHA256)
	}

	var names []string
	for _, e := range entries(t) {
		names = append(names, e.Name)
		mode := int64(0o644)
		if strings.HasSuffix(e.Name, "/"+RunFile) {
			mode = 0o755
		}
		if !e.ModTime.Equal(f.At) || e.Mode != mode || e.Uid != 0 || e.Gid != 0 || e.Uname != "" || e.Gname != "" {
			t.Errorf("%+v", e.Header)
		}
	}
	const want = "kcfi-7/report.txt kcfi-7/run.sh kcfi-7/seed.yaml kcfi-7/seed.console kcfi-7/System.map kcfi-7/initrd kcfi-7/vmlinux"
	if got := strings.ReplaceAll(strings.Join(names, " "), f.Scenario.Name, "kcfi"); got != want {
		t.Errorf("in it are %s, want %s", got, want)
	}
}

// An error leaves no file, and an older one as it was.
func TestPackFails(t *testing.T) {
	dir, f := unpacked(t)
	out := t.TempDir()
	path := filepath.Join(out, "b")
	if err := os.WriteFile(path, []byte("older"), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := Pack(ctx, dir, f, path, func(int64, int64) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	if err := os.Truncate(filepath.Join(dir, VMLinuxFile), 2<<30+1); err != nil { // a sparse file
		t.Fatal(err)
	}
	if _, err := Pack(t.Context(), dir, f, path, noStep); err == nil || !strings.Contains(err.Error(), "vmlinux has 2147483649 bytes, more than a bundle takes") {
		t.Errorf("too long: %v", err)
	}
	if data, err := os.ReadFile(path); string(data) != "older" || err != nil || len(files(t, out)) != 1 {
		t.Errorf("left %q, %v, %v", data, files(t, out), err)
	}
}

// Whatever comes by mail is refused by name, and leaves nothing outside of its
// folder.
func TestUnpackHostile(t *testing.T) {
	good := entries(t)
	at := func(name string) int {
		return slices.IndexFunc(good, func(e entry) bool { return strings.HasSuffix(e.Name, "/"+name) })
	}
	// with is the bundle with one of its entries changed.
	with := func(name string, change func(*entry)) []byte {
		all := slices.Clone(good)
		change(&all[at(name)])
		return compress(archive(t, all, ""))
	}
	add := func(name string, more entry) []byte {
		return compress(archive(t, slices.Insert(slices.Clone(good), at(name), more), ""))
	}
	plain := archive(t, good, "")
	whole := compress(plain)
	bomb := bytes.Clone(plain) // claims a size that it does not have
	i := bytes.Index(bomb, []byte(good[at(InitrdFile)].Name))
	h := good[at(InitrdFile)].Header
	h.Size = 3 << 30
	var claimed bytes.Buffer
	if err := tar.NewWriter(&claimed).WriteHeader(&h); err != nil {
		t.Fatal(err)
	}
	bomb = append(bomb[:i:i], claimed.Bytes()...)

	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"good":            {whole, ""},
		"records of tar":  {compress(archive(t, good, strings.Repeat("\x00", 9<<10))), ""},
		"empty":           {nil, "it has no seed.yaml"},
		"no zstd":         {[]byte("unlucky: 1\n"), "magic number mismatch"},
		"no tar":          {compress(bytes.Repeat([]byte("text"), 1000)), "invalid tar header"},
		"cut":             {whole[:len(whole)/2], "it is cut short"},
		"cut at the end":  {whole[:len(whole)-1], "it is cut short"},
		"cut archive":     {compress(plain[:len(plain)/2]), "it has no initrd"},
		"damaged":         {flip(whole, len(whole)/2), ""},
		"checksum":        {flip(whole, len(whole)-1), "checksum"},
		"more behind":     {compress(archive(t, good, strings.Repeat("x", 1<<20))), "something follows the archive"},
		"bomb":            {compress(append(bytes.Clone(plain), make([]byte, 16<<20)...)), "something follows the archive"},
		"claims":          {compress(bomb), "initrd in it has 3221225472 bytes, more than a bundle takes"},
		"window":          {append([]byte(zstdMagic), 0x00, 0xb8), "window size"}, // 2^33 bytes: RFC 8878, 3.1.1.1.2
		"traversal":       {with(MapFile, func(e *entry) { e.Name = "../" + MapFile }), "no file of a bundle"},
		"in the folder":   {with(MapFile, func(e *entry) { e.Name = "kcfi-7/../../" + MapFile }), "no file of a bundle"},
		"absolute":        {with(MapFile, func(e *entry) { e.Name = "/etc/" + MapFile }), "no file of a bundle"},
		"deeper":          {with(MapFile, func(e *entry) { e.Name = e.Name + "/x" }), "no file of a bundle"},
		"no folder":       {with(ReportFile, func(e *entry) { e.Name = ReportFile }), "no file of a bundle"},
		"another folder":  {with(MapFile, func(e *entry) { e.Name = "x/" + MapFile }), "no file of a bundle"},
		"escapes":         {with(MapFile, func(e *entry) { e.Name = "\x1b[2J/" + MapFile }), `\x1b[2J`},
		"symbolic link":   {with(MapFile, func(e *entry) { e.Typeflag, e.Linkname, e.Size, e.text = tar.TypeSymlink, "/etc/passwd", 0, "" }), "no regular file"},
		"hard link":       {with(MapFile, func(e *entry) { e.Typeflag, e.Linkname, e.Size, e.text = tar.TypeLink, "/etc/passwd", 0, "" }), "no regular file"},
		"device":          {with(MapFile, func(e *entry) { e.Typeflag, e.Size, e.text = tar.TypeChar, 0, "" }), "no regular file"},
		"folder":          {add(ReportFile, entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: "kcfi-7/"}}), "no regular file"},
		"twice":           {add(InitrdFile, good[at(MapFile)]), "out of its order"},
		"order":           {add(ReportFile, good[at(MapFile)]), "out of its order"},
		"unknown":         {add(MapFile, entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "kcfi-7/.bashrc"}, text: "x"}), "no file of a bundle"},
		"another image":   {with(VMLinuxFile, func(e *entry) { e.text = "x" + e.text[1:] }), "vmlinux in it is not the one of its seed"},
		"another initrd":  {with(InitrdFile, func(e *entry) { e.text = "070702" }), "initrd in it is not the one of its seed"},
		"no image":        {compress(archive(t, good[:at(VMLinuxFile)], "")), "it has no vmlinux"},
		"no map":          {compress(archive(t, slices.Delete(slices.Clone(good), at(MapFile), at(MapFile)+1), "")), "it has no System.map"},
		"no bzImage":      {with(SeedFile, func(e *entry) { e.text = strings.Replace(e.text, "image: vmlinux", "image: bzImage", 1) }), "it has no bzImage"},
		"a bad seed":      {with(SeedFile, func(e *entry) { e.text = strings.Replace(e.text, "boots: 3", "boots: 0", 1) }), "seed.yaml: line"},
		"a newer seed":    {with(SeedFile, func(e *entry) { e.text = strings.Replace(e.text, "unlucky: 1", "unlucky: 2", 1) }), "newer unlucky"},
		"no seed":         {compress(archive(t, good[at(MapFile):], "")), "it has no seed.yaml"},
		"a long seed":     {with(SeedFile, func(e *entry) { e.text += strings.Repeat("#", maxFile) }), "more than a bundle takes"},
		"another's frame": {append(bytes.Clone(whole), compress(bytes.Repeat([]byte("x"), 1<<20))...), "something follows the archive"},
	} {
		t.Run(name, func(t *testing.T) {
			outside := t.TempDir()
			dir, path := filepath.Join(outside, "a", "b"), filepath.Join(outside, "bundle")
			if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(path, c.data, 0o644)); err != nil {
				t.Fatal(err)
			}
			_, err := Unpack(t.Context(), path, dir, noStep)
			switch {
			case name == "damaged":
				if err == nil {
					t.Error("taken")
				}
			case c.want == "":
				if err != nil {
					t.Error(err)
				}
			case err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), path+": not a whole bundle: "):
				t.Errorf("error %v, want %q", err, c.want)
			}
			if err != nil && !errors.As(err, new(*host.HintError)) {
				t.Errorf("no hint: %v", err)
			}
			for _, name := range files(t, outside) {
				if base := filepath.Base(name); name != "bundle" && name != "a/b" && (filepath.Dir(name) != "a/b" || !slices.ContainsFunc(members, func(m member) bool { return m.name == base })) {
					t.Errorf("it left %s", name)
				}
			}
		})
	}
}

// flip is data with a bit of one byte flipped.
func flip(data []byte, i int) []byte {
	data = bytes.Clone(data)
	data[i] ^= 1
	return data
}

// What is no file is refused, and an end is heard.
func TestUnpackErrors(t *testing.T) {
	if _, err := Unpack(t.Context(), os.DevNull, t.TempDir(), noStep); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a device: %v", err)
	}
	if _, err := Unpack(t.Context(), filepath.Join(t.TempDir(), "none"), t.TempDir(), noStep); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	path := filepath.Join(t.TempDir(), "b")
	if err := os.WriteFile(path, compress(archive(t, entries(t), "")), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Unpack(ctx, path, t.TempDir(), noStep); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

// Of any archive nothing but members is unpacked, and what is taken is what its
// seed says.
func FuzzUnpack(f *testing.F) {
	good := archive(f, entries(f), "")
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		outside := t.TempDir()
		dir := filepath.Join(outside, "a")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		file, err := unpack(bytes.NewReader(compress(data)), dir) // compressed data that is mutated is seldom any
		for _, name := range files(t, outside) {
			if name != "a" && !slices.ContainsFunc(members, func(m member) bool { return name == "a/"+m.name }) {
				t.Fatalf("it left %s", name)
			}
		}
		if err != nil {
			return
		}
		image, err := os.ReadFile(filepath.Join(dir, VMLinuxFile))
		if err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(image); hex.EncodeToString(sum[:]) != file.Digests.Image {
			t.Fatalf("an image %x was taken for %s", sum, file.Digests.Image)
		}
	})
}

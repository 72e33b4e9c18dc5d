package seeds

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/google/renameio/v2"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"unlucky/arch"
	"unlucky/host"
)

// A bundle is a saved seed with all that a boot of it needs, in one file: a tar
// archive compressed by zstd. Its members lie in one folder, in the order of
// members, whose names and sizes are all that Unpack takes. Equal files give
// equal bundles, byte for byte.

// The members of a bundle.
const (
	ReportFile  = "report.txt"    // what to write into a mail
	RunFile     = "run.sh"        // boots it
	SeedFile    = "seed.yaml"     // the File, whatever its name was
	MinFile     = "seed.min.yaml" // what minimize has made of it; may be missing
	ConsoleFile = "seed.console"  // of its first boot
	MapFile     = "System.map"
	InitrdFile  = "initrd"
	VMLinuxFile = arch.VMLinux // and the image that is made of it, by its own name, if that is booted
)

// member is a file that a bundle may have; max bounds its size in bytes.
type member struct {
	name string
	mode int64
	max  int64
}

// members are in the order in which they stand: what people read comes first.
var members = slices.Concat([]member{
	{ReportFile, 0o644, 16 << 20},
	{RunFile, 0o755, 1 << 20},
	{SeedFile, 0o644, maxFile},
	{MinFile, 0o644, maxFile},
	{ConsoleFile, 0o644, maxConsole},
	{MapFile, 0o644, 256 << 20},
	{InitrdFile, 0o644, 2 << 30}, // as qemu.ReadCpio
}, bootImages(), []member{
	{VMLinuxFile, 0o644, 2 << 30}, // a defconfig's with all of DWARF has a quarter of it
})

// bootImages are the images that are made of vmlinux: a bundle has one of them if that
// is booted.
func bootImages() (images []member) {
	for _, name := range arch.BootFiles() {
		images = append(images, member{name, 0o644, 1 << 30}) // what a 32-bit boot loader could load
	}
	return images
}

// maxConsole bounds a console, in bytes: a boot's is 1 MiB at most.
const maxConsole = 16 << 20

// Packed is a bundle that was written.
type Packed struct {
	Path    string   `json:"path"`
	Bytes   int64    `json:"bytes"`
	SHA256  string   `json:"sha256"` // hex
	Members []Member `json:"members"`
}

// Member is one file in a bundle.
type Member struct {
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"`
}

// BundleName is the folder in the bundle of f, "canary-11", and with .tar.zst the
// bundle's usual name.
func BundleName(f File) string {
	name := f.Scenario.Name + "-" + f.Layout.String()
	if f.Plan != nil {
		name += ".min"
	}
	return name
}

// Pack writes the members that lie in dir as the bundle of f to path, replaced
// atomically. step is told how many bytes are done, of how many.
func Pack(ctx context.Context, dir string, f File, path string, step func(done, total int64)) (Packed, error) {
	p := Packed{Path: path}
	var total int64
	for _, m := range members {
		info, err := os.Stat(filepath.Join(dir, m.name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return Packed{}, err
		}
		if info.Size() > m.max {
			return Packed{}, fmt.Errorf("%s has %d bytes, more than a bundle takes (%d)", m.name, info.Size(), m.max)
		}
		p.Members = append(p.Members, Member{m.name, info.Size()})
		total += info.Size()
	}
	out, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithPermissions(0o644))
	if err != nil {
		return Packed{}, fmt.Errorf("writing %s: %w", path, err)
	}
	defer out.Cleanup()
	sum := sha256.New()
	err = p.write(ctx, dir, f, io.MultiWriter(out, sum), func(done int64) { step(done, total) })
	if err == nil {
		var info os.FileInfo
		if info, err = out.Stat(); err == nil {
			p.Bytes = info.Size()
			err = out.CloseAtomicallyReplace()
		}
	}
	if err != nil {
		return Packed{}, roomToPack(path, fmt.Errorf("writing %s: %w", path, err))
	}
	p.SHA256 = hex.EncodeToString(sum.Sum(nil))
	return p, nil
}

func (p Packed) write(ctx context.Context, dir string, f File, out io.Writer, step func(done int64)) error {
	// Of one thread: blocks that several compress are cut by the speed of each.
	z, err := zstd.NewWriter(out, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithEncoderCRC(true))
	if err != nil {
		return err
	}
	defer z.Close()
	w := tar.NewWriter(z)
	copied := meter{ctx: ctx, step: step}
	for _, m := range members {
		i := slices.IndexFunc(p.Members, func(p Member) bool { return p.Name == m.name })
		if i < 0 {
			continue
		}
		header := &tar.Header{
			Typeflag: tar.TypeReg, Name: BundleName(f) + "/" + m.name, Mode: m.mode, Size: p.Members[i].Bytes, ModTime: f.At,
		}
		if err := w.WriteHeader(header); err != nil {
			return err
		}
		in, err := os.Open(filepath.Join(dir, m.name))
		if err != nil {
			return err
		}
		copied.Reader = in
		_, err = io.Copy(w, &copied)
		in.Close()
		if err != nil {
			return err
		}
	}
	return errors.Join(w.Close(), z.Close())
}

// meter reads until ctx is done, and tells how far it has come.
type meter struct {
	io.Reader
	ctx  context.Context
	done int64
	step func(done int64)
}

func (m *meter) Read(b []byte) (int, error) {
	if err := m.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := m.Reader.Read(b)
	m.done += int64(n)
	m.step(m.done)
	return n, err
}

// IsBundle tells by its first bytes whether the file at path is a bundle: zstd's
// magic number (RFC 8878, 3.1.1).
func IsBundle(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	head := make([]byte, len(zstdMagic))
	n, err := io.ReadFull(f, head)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = nil
	}
	return string(head[:n]) == zstdMagic, err
}

const zstdMagic = "\x28\xb5\x2f\xfd"

// Unpack writes the members of the bundle at path into dir, which is empty and
// nobody else's, and returns its seed. The bundle may come from anybody: nothing
// is taken but members as Pack writes them, in sizes that are bounded, and the
// image and the initrd that the seed names by their digests. (A bzImage is made
// of the vmlinux that they name, and has none of its own.) step is told how many
// bytes of the file are read, of how many.
func Unpack(ctx context.Context, path, dir string, step func(done, total int64)) (File, error) {
	f, err := os.Open(path)
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return File{}, err
	}
	if !info.Mode().IsRegular() { // a pipe may never end
		return File{}, fmt.Errorf("%s: not a regular file", path)
	}
	in := &meter{Reader: f, ctx: ctx, step: func(done int64) { step(done, info.Size()) }}
	saved, err := unpack(in, dir)
	switch {
	case err == nil:
		return saved, nil
	case ctx.Err() != nil:
		return File{}, ctx.Err()
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
		return File{}, roomToPack(dir, fmt.Errorf("unpacking %s: %w", path, err))
	}
	return File{}, &host.HintError{
		Err:  fmt.Errorf("%s: not a whole bundle: %w", path, err),
		Hint: "get it once more, and compare its sha256 with the one that unlucky bundle has printed",
	}
}

// maxWindow bounds the memory that unpacking takes: it is that of zstd's own
// command, which takes no more unless it is told to.
const maxWindow = 128 << 20

// unpack is Unpack for what is read from in.
func unpack(in io.Reader, dir string) (File, error) {
	z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
	if err != nil {
		return File{}, err
	}
	defer z.Close()
	digests := map[string]string{}
	var folder string
	next := 0 // of members
	r := tar.NewReader(z)
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return File{}, whole(err)
		}
		top, name, ok := strings.Cut(h.Name, "/")
		i := slices.IndexFunc(members, func(m member) bool { return m.name == name })
		switch {
		case h.Typeflag != tar.TypeReg:
			return File{}, fmt.Errorf("%q in it is no regular file", h.Name)
		case !ok || !folderForm.MatchString(top) || folder != "" && top != folder || i < next:
			return File{}, fmt.Errorf("%q in it is no file of a bundle, or out of its order", h.Name)
		case h.Size > members[i].max:
			return File{}, fmt.Errorf("%s in it has %d bytes, more than a bundle takes (%d)", name, h.Size, members[i].max)
		}
		folder, next = top, i+1
		if digests[name], err = unpackMember(r, filepath.Join(dir, name), os.FileMode(members[i].mode)); err != nil {
			return File{}, whole(err)
		}
	}
	// What follows the archive is read for the checksum behind it.
	if n, err := io.Copy(io.Discard, io.LimitReader(z, maxTrailer)); err != nil {
		return File{}, whole(err)
	} else if n == maxTrailer {
		return File{}, errors.New("something follows the archive")
	}
	return checkUnpacked(dir, digests)
}

const maxTrailer = 64 << 10 // tar's own record of zeros has 10 KiB

// folderForm is a scenario's name and a layout's.
var folderForm = regexp.MustCompile(`\A[a-z0-9][a-z0-9.-]*\z`)

// whole puts the end of a file that is cut short into words.
func whole(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return errors.New("it is cut short")
	}
	return err
}

// unpackMember writes a member and returns its digest.
func unpackMember(r io.Reader, path string, mode os.FileMode) (digest string, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, sum), r)
	return hex.EncodeToString(sum.Sum(nil)), errors.Join(err, f.Close())
}

// checkUnpacked reads the seed in dir and holds the digests of the members
// against it.
func checkUnpacked(dir string, digests map[string]string) (File, error) {
	data, err := os.ReadFile(filepath.Join(dir, SeedFile))
	if errors.Is(err, os.ErrNotExist) {
		return File{}, fmt.Errorf("it has no %s", SeedFile)
	}
	if err != nil {
		return File{}, err
	}
	f, err := parse(data, SeedFile)
	if err != nil {
		return File{}, err
	}
	for _, m := range members {
		unbooted := m.name != f.Scenario.Kernel.Image && slices.Contains(arch.BootFiles(), m.name)
		if digests[m.name] == "" && m.name != MinFile && !unbooted {
			return File{}, fmt.Errorf("it has no %s", m.name)
		}
	}
	for name, want := range map[string]string{VMLinuxFile: f.Digests.Image, InitrdFile: f.Digests.Initrd} {
		if got := digests[name]; got != want {
			return File{}, fmt.Errorf("%s in it is not the one of its seed (sha256 %.12s, want %.12s)", name, got, want)
		}
	}
	return f, nil
}

// Console reads the console beside the seed file at path; it is nil where there
// is none.
func Console(path string) ([]byte, error) {
	f, err := os.Open(ConsolePath(path))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(io.LimitReader(f, maxConsole+1)); err != nil {
		return nil, err
	}
	if b.Len() > maxConsole {
		return nil, fmt.Errorf("%s: longer than %d MiB: not a console that was saved here", f.Name(), maxConsole>>20)
	}
	return append([]byte{}, b.Bytes()...), nil
}

// WriteConsole writes the console of the seed file at path beside it.
func WriteConsole(path string, console []byte) error { return writeFile(ConsolePath(path), console) }

// roomToPack adds to an error of a full disk what to do about it.
func roomToPack(path string, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return &host.HintError{Err: err, Hint: "make room there, or name another folder by TMPDIR or -o"}
	}
	return err
}

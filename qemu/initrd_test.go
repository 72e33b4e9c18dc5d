package qemu

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/cavaliergopher/cpio"
	"github.com/klauspost/compress/zstd"
)

func TestInitrd(t *testing.T) {
	busybox, err := FindBusybox(elf.EM_X86_64)
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckBusybox(busybox, elf.EM_AARCH64); err == nil || !strings.Contains(err.Error(), "the guest is of EM_AARCH64") {
		t.Errorf("for a guest of another architecture: %v", err)
	}
	first, err := Initrd(busybox, "echo hello\n")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := Initrd(busybox, "echo hello\n"); err != nil || !bytes.Equal(first, again) {
		t.Errorf("the same script gives two archives (%v)", err)
	}
	files := map[string]string{}
	for r := cpio.NewReader(bytes.NewReader(first)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = string(data)
	}
	if !strings.HasPrefix(files["init"], "#!/bin/busybox sh\n") || !strings.HasSuffix(files["init"], "echo hello\n") {
		t.Errorf("init is %q", files["init"])
	}
	if program, err := os.ReadFile(busybox); err != nil || files["bin/busybox"] != string(program) {
		t.Errorf("bin/busybox is not busybox (%v)", err)
	}
}

func TestReadCpio(t *testing.T) {
	plain := []byte("070701 and so on")
	var gz, zst bytes.Buffer
	g := gzip.NewWriter(&gz)
	g.Write(plain)
	g.Close()
	z, err := zstd.NewWriter(&zst)
	if err != nil {
		t.Fatal(err)
	}
	z.Write(plain)
	z.Close()
	for _, test := range []struct {
		name string
		data []byte
		want string // of the error
	}{
		{"plain", plain, ""},
		{"gzip", gz.Bytes(), ""},
		{"zstd", zst.Bytes(), ""},
		{"cut gzip", gz.Bytes()[:gz.Len()/2], "unexpected EOF"},
		{"cut zstd", zst.Bytes()[:zst.Len()/2], "unexpected EOF"},
		{"text", []byte("hello"), "no cpio archive"},
		{"empty", nil, "no cpio archive"},
	} {
		path := filepath.Join(t.TempDir(), "rootfs")
		if err := os.WriteFile(path, test.data, 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := ReadCpio(path)
		if test.want == "" && (err != nil || !bytes.Equal(got, plain)) {
			t.Errorf("%s: %q, %v", test.name, got, err)
		}
		if test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), path)) {
			t.Errorf("%s: error %v, want the path and %q", test.name, err, test.want)
		}
	}
}

// A root file system that has no end, or unpacks to more than any guest takes,
// is refused before it fills the memory.
func TestReadCpioEndless(t *testing.T) {
	long := filepath.Join(t.TempDir(), "long")
	if err := errors.Join(os.WriteFile(long, nil, 0o644), os.Truncate(long, maxCpio+1)); err != nil {
		t.Fatal(err)
	}
	var gz bytes.Buffer
	g := gzip.NewWriter(&gz)
	g.Write(append([]byte("070701"), make([]byte, 1<<28)...))
	g.Close()
	bomb := filepath.Join(t.TempDir(), "bomb")
	if err := os.WriteFile(bomb, gz.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadCpio(bomb); err != nil {
		t.Error(err)
	}
	old := maxCpio
	maxCpio = 1 << 20
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := ReadCpio(bomb); err == nil || !strings.Contains(err.Error(), bomb+": longer than 0 GiB, once it is unpacked") {
		t.Errorf("%s: %v", bomb, err)
	}
	if runtime.ReadMemStats(&after); after.TotalAlloc-before.TotalAlloc > 1<<27 {
		t.Errorf("%s took %d MiB", bomb, (after.TotalAlloc-before.TotalAlloc)>>20)
	}
	maxCpio = old
	for _, path := range []string{"/dev/zero", long} {
		if _, err := ReadCpio(path); err == nil || err.Error() != path+": not a regular file of at most 2 GiB" {
			t.Errorf("%s: %v", path, err)
		}
	}
}

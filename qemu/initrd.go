package qemu

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"github.com/cavaliergopher/cpio"
	"github.com/klauspost/compress/zstd"

	"unlucky/host"
)

// FindBusybox returns the path of a statically linked busybox, which is the
// whole user space of a guest that has no root file system of its own.
func FindBusybox(machine elf.Machine) (string, error) {
	path, err := exec.LookPath("busybox")
	if err == nil {
		err = CheckBusybox(path, machine)
	}
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, host.Install("busybox"))
	}
	return path, nil
}

// CheckBusybox tells what is wrong with a busybox for guests of a machine.
func CheckBusybox(path string, machine elf.Machine) error {
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer f.Close()
	if f.Machine != machine {
		return fmt.Errorf("%s is of %v, the guest is of %v", path, f.Machine, machine)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is not statically linked", path)
		}
	}
	return nil
}

// Initrd is an uncompressed cpio (newc) with a busybox and, as /init, a shell
// script that it runs. Equal input gives equal bytes. The script begins with
// nothing mounted and every applet of busybox on the PATH.
func Initrd(busybox, script string) ([]byte, error) {
	program, err := os.ReadFile(busybox)
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(script, "#!") {
		script = "#!/bin/busybox sh\n/bin/busybox --install -s /bin\nexport PATH=/bin\n" + script
	}
	var out bytes.Buffer
	w := cpio.NewWriter(&out)
	add := func(name string, mode cpio.FileMode, data []byte) {
		if err == nil {
			err = w.WriteHeader(&cpio.Header{Name: name, Mode: mode, Size: int64(len(data)), Links: 1})
		}
		if err == nil {
			_, err = w.Write(data)
		}
	}
	for _, dir := range []string{"bin", "dev", "etc", "mnt", "proc", "root", "run", "sys", "tmp"} {
		add(dir, cpio.TypeDir|0o755, nil)
	}
	add("bin/busybox", cpio.TypeReg|0o755, program)
	add("init", cpio.TypeReg|0o755, []byte(script))
	if err := errors.Join(err, w.Close()); err != nil {
		return nil, fmt.Errorf("making the initrd: %w", err)
	}
	return out.Bytes(), nil
}

// maxCpio bounds a root file system, in bytes: no guest would boot a longer one,
// and a compressed one can be long in a small file.
var maxCpio int64 = 2 << 30 // tests have a smaller one

// ReadCpio reads a root file system in a cpio archive, plain or compressed by
// gzip or zstd, and returns it plain.
func ReadCpio(path string) ([]byte, error) {
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() || info.Size() > maxCpio { // a device or a pipe may never end
		return nil, fmt.Errorf("%s: not a regular file of at most %d GiB", path, maxCpio>>30)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	plain := data
	switch {
	case bytes.HasPrefix(data, []byte{0x1f, 0x8b}):
		var r *gzip.Reader
		if r, err = gzip.NewReader(bytes.NewReader(data)); err == nil {
			plain, err = io.ReadAll(io.LimitReader(r, maxCpio+1))
		}
	case bytes.HasPrefix(data, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		var r *zstd.Decoder
		if r, err = zstd.NewReader(bytes.NewReader(data)); err == nil {
			plain, err = io.ReadAll(io.LimitReader(r, maxCpio+1))
			r.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if int64(len(plain)) > maxCpio {
		return nil, fmt.Errorf("%s: longer than %d GiB, once it is unpacked", path, maxCpio>>30)
	}
	if !bytes.HasPrefix(plain, []byte("070701")) && !bytes.HasPrefix(plain, []byte("070702")) {
		return nil, fmt.Errorf("%s: no cpio archive of the newc format, plain, gzip or zstd", path)
	}
	return plain, nil
}

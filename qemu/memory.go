package qemu

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Memory is the RAM of a guest, which outlives QEMU however that ends: a reset, a
// panic, a kill. Byte 0 is at physical address 0, up to where a machine has a hole
// below 4 GiB. It is a file in memory that has no name, as large as what the guest
// has touched: nobody else can open it, and it is gone with this program, however
// that ends.
type Memory struct{ file *os.File }

// NewMemory makes the RAM of a guest of some MiB.
func NewMemory(mib int) (*Memory, error) {
	f, err := unnamed("guest memory")
	if err != nil {
		return nil, err
	}
	m := &Memory{f}
	if err := f.Truncate(int64(mib) << 20); err != nil {
		return nil, errors.Join(fmt.Errorf("memory of a guest: %w", err), f.Close())
	}
	return m, nil
}

// ReadAt reads what is at a physical address.
func (m *Memory) ReadAt(b []byte, at int64) (int, error) { return m.file.ReadAt(b, at) }

// Close gives it back.
func (m *Memory) Close() error { return m.file.Close() }

// clear makes it all zero, as that of a machine that is switched on.
func (m *Memory) clear() error {
	info, err := m.file.Stat()
	if err == nil {
		err = m.file.Truncate(0)
	}
	if err == nil {
		err = m.file.Truncate(info.Size())
	}
	return err
}

// unnamed is a file in memory, for QEMU to write to.
func unnamed(what string) (*os.File, error) {
	fd, err := unix.MemfdCreate(what, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("a file in memory for the %s: %w", what, err)
	}
	f := os.NewFile(uintptr(fd), what)
	// Another user's QEMU opens it by its descriptor, which takes the right to.
	if err = f.Chmod(0o600); err == nil && os.Geteuid() == 0 {
		if c, anotherErr := another(); anotherErr == nil {
			err = f.Chown(int(c.Uid), int(c.Gid))
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("a file in memory for the %s: %w", what, err), f.Close())
	}
	return f, nil
}

// Trace is what TCG has translated of a guest's code, in the order in which it was
// run for the first time: the log of QEMU's -d in_asm.
type Trace struct {
	Ranges []Range // what is looked at
	file   *os.File
}

// Range are addresses of code.
type Range struct{ Address, Bytes uint64 }

// maxTrace bounds what is read of a log, in bytes: a kernel that is translated whole
// has a tenth of it.
const maxTrace = 64 << 20

// NewTrace makes a log of some code.
func NewTrace(ranges []Range) (*Trace, error) {
	f, err := unnamed("QEMU log")
	return &Trace{Ranges: ranges, file: f}, err
}

// Read is the log.
func (t *Trace) Read() ([]byte, error) {
	info, err := t.file.Stat()
	if err != nil {
		return nil, err
	}
	data := make([]byte, min(info.Size(), maxTrace))
	n, err := t.file.ReadAt(data, 0)
	if err == io.EOF {
		err = nil
	}
	return data[:n], err
}

// Close gives it back.
func (t *Trace) Close() error { return t.file.Close() }

// filter is the argument of -dfilter.
func (t *Trace) filter() string {
	var all []string
	for _, r := range t.Ranges {
		all = append(all, fmt.Sprintf("%#x+%#x", r.Address, r.Bytes))
	}
	return strings.Join(all, ",")
}

// watched are the arguments for the memory, the trace and the debugger, and the machine's type with
// them. Each stands in the command line by the descriptor that QEMU will have it at.
func (m Machine) watched(first int) (kind string, args []string, files []*os.File) {
	kind = m.Type
	path := func(f *os.File) string {
		files = append(files, f)
		return descriptor(first + len(files) - 1)
	}
	if m.RAM != nil {
		kind += ",memory-backend=ram"
		args = append(args, "-object", fmt.Sprintf("memory-backend-file,id=ram,size=%dM,mem-path=%s,share=on", m.MemoryMiB, path(m.RAM.file)))
	}
	if m.Trace != nil {
		args = append(args, "-d", "in_asm", "-dfilter", m.Trace.filter(), "-D", path(m.Trace.file))
	}
	if m.Debugger != nil {
		files = append(files, m.Debugger.theirs)
		args = append(args, "-S", "-chardev", fmt.Sprintf("socket,id=gdb,fd=%d", first+len(files)-1), "-gdb", "chardev:gdb")
	}
	if m.qmp != nil {
		files = append(files, m.qmp)
		args = append(args, "-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", first+len(files)-1), "-mon", "chardev=qmp,mode=control")
		args = append(args, endless...)
	}
	return kind, args, slices.Clip(files)
}

// descriptor names an open file of a process to itself.
func descriptor(n int) string { return fmt.Sprintf("/proc/self/fd/%d", n) }

package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"regexp"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// unprivileged is the user that root's QEMU runs as, who owns nothing.
const unprivileged = "nobody"

// another returns what makes a process unprivileged, or why root can't have it.
var another = sync.OnceValues(func() (*syscall.Credential, error) {
	u, err := user.Lookup(unprivileged)
	if err != nil {
		return nil, err
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	c := &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	// The root of a user namespace, or one without capabilities, can be refused.
	try := exec.Command("/bin/true")
	try.SysProcAttr = &syscall.SysProcAttr{Credential: c}
	if err := try.Run(); errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) {
		return nil, fmt.Errorf("this root may not become %s: %w", unprivileged, err)
	}
	return c, nil
})

// byKVM matches what asks QEMU for KVM, of -M, -accel and further arguments.
var byKVM = regexp.MustCompile(`^(?:kvm(?:,.*)?|-?-enable-kvm|(?:.*,)?accel=kvm.*)$`)

// credential returns the user that QEMU must be made to run as, nil for this
// program's own. If that is root, the error says why.
func (m Machine) credential() (*syscall.Credential, error) {
	if os.Geteuid() != 0 || m.Program != nil {
		return nil, nil
	}
	c, err := another()
	if err != nil {
		return nil, err
	}
	for _, a := range append([]string{m.Type, m.Accel}, m.Args...) {
		if byKVM.MatchString(a) {
			return withKVM(*c, kvmDevice)
		}
	}
	return c, nil
}

// withKVM returns c so that it may open KVM's device at path.
func withKVM(c syscall.Credential, path string) (*syscall.Credential, error) {
	const readWrite = 0o6
	var device unix.Stat_t
	if err := unix.Stat(path, &device); err != nil {
		return &c, nil // QEMU says so itself
	}
	switch {
	case device.Mode&readWrite == readWrite:
	case device.Mode>>3&readWrite == readWrite && device.Gid != 0:
		c.Groups = []uint32{device.Gid}
	default:
		return nil, fmt.Errorf("%s is for root alone; chgrp kvm %[1]s && chmod 660 %[1]s mends that", path)
	}
	return &c, nil
}

// User returns as whom QEMU runs where this program is root's, and "" where it
// is not: QEMU is then the user's own, as a program in its place always is. If root it must be, the error says why
// and what to do about it.
func (m Machine) User() (string, error) {
	c, err := m.credential()
	switch {
	case err != nil:
		return "root", err
	case c == nil:
		return "", nil
	}
	return unprivileged, nil
}

// Command returns the command that runs the machine, which dies with the
// thread that starts it. It is that of Argv, but where QEMU is made another
// user's, who may enter none of the folders of the kernel and the initrd, it
// has them open. cmd.ExtraFiles are the caller's to close.
func (m Machine) Command(ctx context.Context) (*exec.Cmd, error) {
	if m.Program != nil {
		return m.program(), nil
	}
	// Before exec: QEMU's -runas is killed by its own sandbox. Go asks for the
	// death signal after it has changed the user, which takes it away.
	attr := &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	attr.Credential, _ = m.credential()
	var files []*os.File
	if attr.Credential != nil {
		for _, name := range []*string{&m.Kernel, &m.Initrd} {
			if *name == "" {
				continue
			}
			f, err := readable(*name)
			if errors.Is(err, fs.ErrNotExist) {
				continue // QEMU says so itself
			}
			if err != nil {
				closeAll(files)
				return nil, fmt.Errorf("handing a file to QEMU: %w", err)
			}
			*name = descriptor(firstExtra + len(files))
			files = append(files, f)
		}
	}
	kind, watch, more := m.watched(firstExtra + len(files))
	for _, f := range more { // a copy, as what is handed over is closed by the caller
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			closeAll(files)
			return nil, fmt.Errorf("handing a file to QEMU: %w", err)
		}
		files = append(files, os.NewFile(uintptr(fd), f.Name()))
	}
	argv := m.argv(kind, watch)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.SysProcAttr, cmd.ExtraFiles = attr, files
	return cmd, nil
}

// readable opens a file that anybody who has it open may open again. QEMU does
// that, a few times, and it takes the right to read the file, but no folder.
func readable(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && (info.Mode().Perm()&0o004 != 0 || !info.Mode().IsRegular()) {
		return f, nil
	}
	defer f.Close()
	if err != nil {
		return nil, err
	}
	// Made under a umask of 077, say: a copy in memory, rather than a change.
	fd, err := unix.MemfdCreate(info.Name(), unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("a copy of %s in memory: %w", path, err)
	}
	copied := os.NewFile(uintptr(fd), path)
	if _, err = io.Copy(copied, f); err == nil {
		err = copied.Chmod(0o444)
	}
	if err != nil {
		copied.Close()
		return nil, fmt.Errorf("a copy of %s in memory: %w", path, err)
	}
	return copied, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// ByProgram is the accelerator of a machine that a program boots in QEMU's place.
const ByProgram = "command"

// powerOff is how long a program that is to end has for it, from SIGTERM to
// SIGKILL: a board is powered off by a few requests over the network.
const powerOff = 20 * time.Second

// conduct is what differs between QEMU and a program in its place, once it runs.
type conduct struct {
	name string // for messages
	// grace is what lies between SIGTERM and SIGKILL. QEMU has none, and ends at once; a
	// program has, and what it prints in that time is its own, not the guest's.
	grace time.Duration
	// fatal, unless it is nil, matches what it says on stderr when it has failed; it is
	// ended then.
	fatal *regexp.Regexp
}

func (m Machine) conduct(e Expect) conduct {
	if m.Program == nil {
		return conduct{name: "QEMU", fatal: fatal}
	}
	return conduct{name: m.Program[0], grace: powerOff, fatal: e.Infra}
}

// variables are those of the environment that tell a program what to boot.
func (m Machine) variables() []string {
	return []string{"UNLUCKY_IMAGE=" + m.Kernel, "UNLUCKY_INITRD=" + m.Initrd, "UNLUCKY_APPEND=" + m.Append, "UNLUCKY_SLOT=" + m.Slot}
}

// words are the program and its arguments: a placeholder may be a part of a word,
// and what takes its place is never split.
func (m Machine) words() []string {
	fill := strings.NewReplacer("{image}", m.Kernel, "{initrd}", m.Initrd, "{append}", m.Append, "{slot}", m.Slot)
	var words []string
	for _, w := range m.Program {
		words = append(words, fill.Replace(w))
	}
	return words
}

// program is the command that runs a program in QEMU's place, as this program's
// own user. It is told to end when the thread that has started it dies.
func (m Machine) program() *exec.Cmd {
	words := m.words()
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Env = append(os.Environ(), m.variables()...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	return cmd
}

// findProgram says why a program in QEMU's place could not be run.
func findProgram(name string) (path string, err error) {
	path, err = exec.LookPath(name)
	switch {
	case errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("guest.command: there is no program %s here", name)
	case err != nil:
		return "", fmt.Errorf("guest.command: cannot run %s: %w", name, err)
	}
	return path, nil
}

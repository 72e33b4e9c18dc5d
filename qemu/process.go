package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is one running QEMU, or program in its place, the leader of a process
// group of its own.
type process struct {
	stdout, stderr *os.File // the read ends of its pipes

	cmd    *exec.Cmd
	how    conduct
	exited chan struct{} // closed when it has ended; it is a zombie until wait reaps it
	strays *time.Timer   // closes the pipes a while after the end; set before exited is closed

	// farewell, unless it is nil, comes before it is killed: false is that it ends by
	// itself now.
	farewell func() bool

	mu     sync.Mutex
	reaped bool      // its id may be another process's now
	killed time.Time // by us, while it may still have run
}

// starter returns where to send a function that is to run on the one OS thread
// that lives as long as this program. Pdeathsig goes by threads: a child gets
// its signal when the thread that started it ends, and a thread of the Go
// runtime can end at any time.
var starter = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

// start runs a command of Machine.Command with nothing to read and a pipe each
// for its stdout and stderr. It dies with this program, however this program
// dies.
func start(cmd *exec.Cmd, how conduct) (*process, error) {
	stdout, outEnd, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer outEnd.Close()
	stderr, errEnd, err := os.Pipe()
	if err != nil {
		stdout.Close()
		return nil, err
	}
	defer errEnd.Close()

	cmd.Stdout, cmd.Stderr = outEnd, errEnd
	cmd.SysProcAttr.Setpgid = true
	result := make(chan error)
	starter() <- func() { result <- cmd.Start() }
	if err := <-result; err != nil {
		stdout.Close()
		stderr.Close()
		if cmd.SysProcAttr.Credential != nil && errors.Is(err, fs.ErrPermission) {
			err = fmt.Errorf("%w: root's QEMU runs as %s, who must be able to run it", err, unprivileged)
		}
		if how.grace > 0 {
			return nil, fmt.Errorf("cannot run guest.command: %w", err)
		}
		return nil, startError(cmd.Args[0], err)
	}
	p := &process{stdout: stdout, stderr: stderr, cmd: cmd, how: how, exited: make(chan struct{})}
	go p.await()
	return p, nil
}

// await closes exited once the leader has ended, and ends what is left of its
// group (there can be more than QEMU if the binary is a wrapper) while the
// leader's id is still its own.
func (p *process) await() {
	for unix.Waitid(unix.P_PID, p.cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	unix.Kill(-p.cmd.Process.Pid, unix.SIGKILL)
	// What has left the group can still hold the pipes: read on for a moment only.
	p.strays = time.AfterFunc(time.Second, p.closePipes)
	close(p.exited)
}

func (p *process) closePipes() {
	p.stdout.Close()
	p.stderr.Close()
}

// kill ends the whole process group, unless its leader has ended: at once, or after
// the grace that it has.
func (p *process) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped || !p.killed.IsZero() || closed(p.exited) {
		return
	}
	p.killed = time.Now()
	now := func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if !p.reaped {
			unix.Kill(-p.cmd.Process.Pid, unix.SIGKILL)
		}
	}
	switch {
	case p.farewell != nil:
		go func() {
			if p.farewell() {
				now()
			}
		}()
	case p.how.grace == 0:
		unix.Kill(-p.cmd.Process.Pid, unix.SIGKILL)
	default:
		unix.Kill(-p.cmd.Process.Pid, unix.SIGTERM)
		time.AfterFunc(p.how.grace, now)
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// silenced tells that what is printed from now on does not count.
func (p *process) silenced() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.killed.IsZero() && p.how.grace > 0
}

// wait waits for the end of the process, reaps it, and returns its status and
// whether that is our own kill. To be called once both pipes have been read to
// their end.
func (p *process) wait() (status syscall.WaitStatus, ours bool) {
	<-p.exited
	p.strays.Stop()
	p.closePipes()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cmd.Wait() // its error is the status, nothing more: there is nothing to copy
	p.reaped = true
	status = p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if p.how.grace > 0 { // whatever it says of having been told to end
		return status, !p.killed.IsZero()
	}
	return status, !p.killed.IsZero() && status.Signaled() && status.Signal() == syscall.SIGKILL
}

package linker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"unlucky/host"
	"unlucky/layout"
	"unlucky/scenarios"
)

// ByHand makes layouts as a person does without this program, for benchmarks:
// scripts/link-vmlinux.sh edited to link a padded vmlinux.o, and make for each.
type ByHand struct {
	kernel *Kernel
	spec   scenarios.Kernel
	build  string   // a copy of the build
	held   *os.File // locked
	object *edited
}

// NewByHand copies the build and makes its first boot image, which takes half a
// minute.
func (p *Kernel) NewByHand(ctx context.Context, spec scenarios.Kernel) (_ *ByHand, err error) {
	if filepath.Dir(p.Objtree) != p.Source {
		return nil, fmt.Errorf("%s was not built here: what make does in it by hand can't be measured", p.Objtree)
	}
	h := &ByHand{kernel: p, spec: spec}
	if h.build, h.held, err = host.NewRoom(p.Source); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.Close())
		}
	}()
	if out, err := exec.CommandContext(ctx, "cp", "-a", p.Objtree+"/.", h.build).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("copying %s: %w%s", p.Objtree, err, host.LastLines(out, 3))
	}
	script, err := os.ReadFile(h.script())
	if err != nil {
		return nil, err
	}
	edited := bytes.Replace(script, []byte("objs=vmlinux.o"), []byte("objs=padded.o"), 1)
	if bytes.Equal(edited, script) {
		return nil, fmt.Errorf("%s has no objs=vmlinux.o to edit", h.script())
	}
	if err := os.WriteFile(h.script(), edited, 0o755); err != nil {
		return nil, err
	}
	if h.object, err = p.object.copyTo(filepath.Join(h.build, "padded.o")); err != nil {
		return nil, err
	}
	_, err = h.Make(ctx, layout.Plan{})
	return h, err
}

func (h *ByHand) script() string { return filepath.Join(h.build, "scripts/link-vmlinux.sh") }

// Make makes the image of a plan for a boot loader, with a job for each CPU.
func (h *ByHand) Make(ctx context.Context, plan layout.Plan) (path string, err error) {
	e, err := h.kernel.edit(ctx, plan)
	if err != nil {
		return "", err
	}
	if err := h.object.edit(e); err != nil {
		return "", err
	}
	now := time.Now() // as an edit of the script does
	if err := os.Chtimes(h.script(), now, now); err != nil {
		return "", err
	}
	var log bytes.Buffer
	target := h.kernel.Arch.Target
	if err := h.kernel.Make(ctx, h.spec, &log, "O="+filepath.Base(h.build), "-j", fmt.Sprint(runtime.NumCPU()), target); err != nil {
		return "", fmt.Errorf("make %s: %w%s", target, err, host.LastLines(log.Bytes(), 8))
	}
	return filepath.Join(h.build, h.kernel.Arch.BootFile(target)), nil
}

// Close removes the copy.
func (h *ByHand) Close() error {
	var err error
	if h.object != nil {
		err = h.object.Close()
	}
	return errors.Join(err, os.RemoveAll(h.build), h.held.Close())
}

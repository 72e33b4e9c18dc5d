package cli

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"unlucky/fuzz"
	"unlucky/host"
	"unlucky/linker"
	"unlucky/qemu"
	"unlucky/report"
	"unlucky/seeds"
)

func replay(f *flag.FlagSet) *command {
	o := newSetup(f)
	o.packed(f)
	o.trusting(f)
	var (
		boots    = f.Int("boots", 3, "`N` times to boot the image")
		gdb      = f.Bool("gdb", false, "start QEMU stopped, waiting for gdb, and print the gdb line")
		show     = f.Bool("print", false, "print the command that boots it, ready to paste, and do not boot")
		keep     = f.String("keep", "", "`folder` to keep the image, its System.map, the initrd, the consoles and the layout's explicit plan (of a bundle, the seed file) in")
		corePath = f.String("core", "", "`file` to write the guest's memory and registers to as it ends, an ELF file for gdb and crash; it is booted once")
		asJSON   = f.Bool("json", false, "print the result as JSON")
	)
	return &command{
		args: "SEEDFILE|BUNDLE", min: 1, max: 1, long: true,
		summary: "link one saved layout again and boot it; or boot a bundle",
		examples: []string{
			"unlucky replay unlucky.out/kcfi-seal/unexpected-exit/7.yaml -boots 10",
			"unlucky replay unlucky.out/kcfi-seal/unexpected-exit/7.yaml -append cfi=off",
			"unlucky replay unlucky.out/kcfi-seal/unexpected-exit/7.yaml -gdb",
			"unlucky replay unlucky.out/kcfi-seal/unexpected-exit/7.yaml -keep k -core k/core",
			"unlucky replay kcfi-seal-7.tar.zst",
		},
		run: func(ctx context.Context, c call) error {
			if *boots < 1 {
				return usageError{fmt.Errorf("-boots %d: boot it at least once", *boots)}
			}
			if *gdb && *show {
				return usageError{errors.New("-gdb and -print exclude each other")}
			}
			if *corePath != "" {
				if *gdb || *show || given(f, "boots") && *boots > 1 {
					return usageError{errors.New("-core boots once: it excludes -gdb, -print and more -boots")}
				}
				*boots = 1
			}
			if err := notFolder(c.args[0]); err != nil {
				return err
			}
			packed, err := seeds.IsBundle(c.args[0])
			if err != nil {
				return err
			}
			again := relink
			if packed {
				again = unbundle
			}
			b, err := again(ctx, c.args[0], o, c.scr)
			if err != nil {
				return err
			}
			defer b.Close()
			saved, image := b.saved, b.image
			if *gdb && b.guest.Machine.Program != nil {
				return usageError{fmt.Errorf("-gdb is QEMU's, and %s is booted by guest.command", saved.Scenario.Name)}
			}
			if *corePath != "" && b.guest.Machine.Program != nil {
				return usageError{fmt.Errorf("-core is QEMU's, and %s is booted by guest.command", saved.Scenario.Name)}
			}
			if b.template.Tools.QEMU != saved.Tools.QEMU {
				c.scr.note("QEMU is %s and was %s", b.template.Tools.QEMU, saved.Tools.QEMU)
			}
			if b.template.Initrd != saved.Digests.Initrd {
				c.scr.note("warning: the initrd is another one than was saved (another busybox?)")
			}
			if *keep == "" && *show {
				// The command is for later: its files must outlive this program.
				if *keep, err = os.MkdirTemp("", "unlucky-replay-"); err != nil {
					return err
				}
				c.scr.note("what the command boots is in %s, yours to remove; -keep names another folder", *keep)
			}
			m := b.guest.Machine
			m.Kernel = image.Path
			if *keep != "" {
				if m.Kernel, m.Initrd, err = keepImage(*keep, saved.Scenario.Kernel.Image, image, m.Initrd); err != nil {
					return err
				}
				name := "plan.yaml"
				if packed { // without the kernel the plan can't be told
					name = seeds.SeedFile
				}
				if err := b.explicit.Write(filepath.Join(*keep, name), nil); err != nil {
					return err
				}
			}
			switch {
			case *show:
				_, err := fmt.Fprintln(c.out, report.Printable(qemu.Quote(m.Argv())))
				return err
			case *gdb:
				symbols, err := b.debugImage(ctx, c.scr)
				if err != nil {
					return err
				}
				switch {
				case symbols != "":
				case *keep != "":
					symbols = filepath.Join(*keep, "vmlinux")
				default:
					symbols = image.VMLinux
				}
				return debug(ctx, m, symbols, c.in, c.out)
			}
			each := func(n int, r qemu.Result) error {
				title := r.Title
				if r.Kind == qemu.Pass {
					title = "pass"
				}
				c.scr.note("boot %d of %d: %s", n, *boots, title)
				if *keep == "" {
					return nil
				}
				return os.WriteFile(filepath.Join(*keep, fmt.Sprintf("boot-%d.console", n)), r.Console, 0o644)
			}
			if *corePath != "" {
				if b.guest.Machine.Core, err = qemu.NewCore(*corePath); err != nil {
					return err
				}
			}
			n := 0
			var keepErr error
			result, err := fuzz.Replay(ctx, saved, b.guest, image.Path, *boots, func(r qemu.Result) {
				n++
				keepErr = errors.Join(keepErr, each(n, r))
			})
			if core := b.guest.Machine.Core; core != nil && err == nil {
				err = core.Close()
			}
			if err := errors.Join(b.advise(err), keepErr); err != nil {
				return err
			}
			if *corePath != "" {
				symbols := "vmlinux"
				if *keep != "" {
					symbols = filepath.Join(*keep, "vmlinux")
				} else {
					c.scr.note("-keep DIR keeps the vmlinux that belongs to it")
				}
				c.scr.note("the guest's memory: gdb %s", qemu.Quote([]string{symbols, *corePath}))
			}
			if *asJSON {
				if err := json.NewEncoder(c.out).Encode(struct {
					File     string   `json:"file"`
					Scenario string   `json:"scenario"`
					Seed     seeds.ID `json:"seed"`
					Title    string   `json:"title"` // that was saved, perhaps by another version; empty for a layout that passes
					fuzz.Replayed
				}{c.args[0], saved.Scenario.Name, saved.Layout, saved.Title, result}); err != nil {
					return err
				}
			} else {
				printReplayed(c.out, saved, result)
			}
			if result.Shown == 0 {
				return exit(ExitNo)
			}
			return nil
		},
	}
}

// notFolder refuses a folder in place of a seed file.
func notFolder(path string) error {
	if info, err := os.Stat(path); err != nil || !info.IsDir() {
		return nil // whoever reads it says what is wrong with it
	}
	return &host.HintError{
		Err:  fmt.Errorf("%s is a folder: give one of the seed files in it", path),
		Hint: "unlucky list " + qemu.Quote([]string{path}),
	}
}

// replayable is a saved layout that can be booted again.
type replayable struct {
	bootable
	saved    seeds.File
	explicit seeds.File     // the same with its plan, where that can be told
	image    linker.Image   // there until Close
	worker   *linker.Worker // that has linked it; nil where it came in a bundle
}

// debugImage is the image with debug information, where the one that is booted has lost
// it; else empty.
func (r *replayable) debugImage(ctx context.Context, scr *screen) (string, error) {
	if r.worker == nil {
		return "", nil
	}
	defer scr.done()
	scr.progress("linking it with its debug information", 0, 0)
	return r.worker.WithDebug(ctx, *r.explicit.Plan, r.image)
}

// openSaved reads a seed file and makes the session that its layout is linked in.
func openSaved(ctx context.Context, path string, o *setup, scr *screen) (saved seeds.File, b *session, err error) {
	if err := notFolder(path); err != nil {
		return saved, nil, err
	}
	if saved, err = seeds.Read(path); err != nil {
		return saved, nil, err
	}
	s, err := savedScenario(ctx, path, saved, o)
	if err != nil {
		return saved, nil, err
	}
	b, err = savedSession(ctx, s, o, scr)
	return saved, b, err
}

// relink links the image of a saved layout again, in a worker of its own: the image is
// there until that is closed.
func (b *session) relink(ctx context.Context, saved seeds.File, scr *screen) (linker.Image, *linker.Worker, error) {
	w, err := b.NewWorker()
	if err != nil {
		return linker.Image{}, nil, err
	}
	scr.progress("linking "+saved.Layout.Name(), 0, 0)
	image, err := fuzz.Relink(ctx, saved, b, w, b.Digest, b.template.Tools)
	scr.done()
	if err != nil {
		return image, nil, errors.Join(err, w.Close())
	}
	return image, w, nil
}

// relink links the image of a seed file again.
func relink(ctx context.Context, path string, o *setup, scr *screen) (*replayable, error) {
	saved, b, err := openSaved(ctx, path, o, scr)
	if err != nil {
		return nil, err
	}
	b.By = linker.Script // one link: nothing to save, and there is a System.map
	image, w, err := b.relink(ctx, saved, scr)
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	r := &replayable{bootable: b.bootable, saved: saved, explicit: saved, image: image, worker: w}
	r.free = func() error { return errors.Join(w.Close(), b.Close()) }
	plan, err := fuzz.PlanOf(ctx, saved, b)
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	r.explicit.Plan = &plan
	return r, nil
}

// savedAs is what a seed file says that its layout showed.
func savedAs(f seeds.File) string {
	if f.Kind == qemu.Pass {
		return string(qemu.Pass)
	}
	return f.Title
}

func printReplayed(out io.Writer, f seeds.File, r fuzz.Replayed) {
	fmt.Fprintf(out, "%s of %s: reproduced in %d of %d boots\n  saved as  %s\n", f.Layout.Name(), report.Printable(f.Scenario.Name), r.Shown, r.Boots, report.Printable(savedAs(f)))
	for _, title := range slices.Sorted(maps.Keys(r.Titles)) {
		fmt.Fprintf(out, "  %d of %d    %s\n", r.Titles[title], r.Boots, report.Printable(title))
	}
}

// keepImage copies what a boot needs, by its name, and what a debugger wants, into
// dir.
func keepImage(dir, name string, image linker.Image, initrd string) (kernel, keptInitrd string, err error) {
	if dir, err = filepath.Abs(dir); err != nil {
		return "", "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", "", err
	}
	kernel, keptInitrd = filepath.Join(dir, "vmlinux"), filepath.Join(dir, "initrd")
	files := map[string]string{image.VMLinux: kernel, initrd: keptInitrd, image.SystemMap: filepath.Join(dir, "System.map")}
	if image.Path != image.VMLinux {
		kernel = filepath.Join(dir, name)
		files[image.Path] = kernel
	}
	for from, to := range files {
		data, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(to, data, 0o644)
		}
		if err != nil {
			return "", "", err
		}
	}
	return kernel, keptInitrd, nil
}

// debug runs QEMU in the foreground, stopped until gdb tells it to go on.
func debug(ctx context.Context, m qemu.Machine, vmlinux string, in io.Reader, out io.Writer) error {
	m.GDB = true
	host.Trace(ctx, "", m.Argv())
	cmd, err := m.Command(ctx)
	if err != nil {
		return err
	}
	defer func() {
		for _, f := range cmd.ExtraFiles {
			f.Close()
		}
	}()
	fmt.Fprintf(out, "QEMU waits for gdb; in another terminal:\n  gdb %s -ex 'target remote :1234'\nthe console follows; ^C ends QEMU\n", qemu.Quote([]string{vmlinux}))
	runtime.LockOSThread() // the death signal is the thread's
	defer runtime.UnlockOSThread()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, printer{out}, printer{os.Stderr}
	err = cmd.Run()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

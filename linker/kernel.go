// Package linker makes kernel images of chosen layouts: it pads and orders input
// sections of a build's vmlinux.o by a [layout.Plan], and links each plan with the
// kernel's own link-vmlinux.sh or, once that is proven to give the same image, in
// one pass of lld.
//
// It does not know where a plan comes from, nor what becomes of an image.
package linker

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"sync/atomic"

	"unlucky/layout"
	"unlucky/linker/kbuild"
	"unlucky/scenarios"
)

// Kernel is a build that is linked again and again, with any plan and without make.
type Kernel struct {
	*kbuild.Build

	// By is how layouts are linked; a packed kernel, which has no script, makes that one's
	// System.map without. Set it before the first link.
	By Way
	// Sections says which input sections move, as kernel.sections does. Set it before the
	// first link.
	Sections string
	// Note, if set, is told what a person would want to know, in lines.
	Note func(format string, a ...any)

	object    *object // what layouts are linked of: see Build.Linked
	layoutMu  sync.Mutex
	layout    []layout.Section // of the baseline, in output order; nil until asked for
	functions *functions       // of the layout
	onePass   onePassState     // without one until the layout is known
	delta     deltaState       // without templates until something is linked in one pass
	links     atomic.Int64     // in one pass or by delta
	linked    atomic.Bool      // an image was handed out
	memory    atomic.Int64     // bytes that workers may fill of memoryDir
	took      atomic.Int64     // by the baseline's link, CPU time in ns; 0 until there was one

	packed *manifest // of a kernel that Unpack has opened
	noLLD  error     // why that has no lld here; nil where it has
	flat   bool      // what is booted is vmlinux as it lies in memory
}

// Open makes a build ready to be linked. The kernel is closed with it.
func Open(ctx context.Context, b *kbuild.Build, progress kbuild.Progress) (*Kernel, error) {
	linked, err := b.Linked(ctx, progress)
	if err != nil {
		return nil, err
	}
	object, err := openObject(linked)
	p := &Kernel{Build: b, object: object}
	p.flat = isFlat(b, p.output())
	return p, err
}

// file is the path of a file of the build that a link takes.
func (p *Kernel) file(name string) string {
	if name == "vmlinux.o" {
		return p.object.path
	}
	return filepath.Join(p.Objtree, name)
}

// byMakefiles tells whether what is booted is made of vmlinux by kbuild's makefiles.
func (p *Kernel) byMakefiles() bool { return p.BootFile() != "" && !p.flat }

// PrepareKernel makes the build that k describes, below cache, and opens it.
func Prepare(ctx context.Context, cache string, k scenarios.Kernel, progress kbuild.Progress) (*Kernel, error) {
	b, err := kbuild.Prepare(ctx, cache, k, progress)
	if err != nil {
		return nil, err
	}
	p, err := Open(ctx, b, progress)
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	p.Sections = k.Sections
	return p, nil
}

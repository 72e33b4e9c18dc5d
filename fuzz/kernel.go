package fuzz

import (
	"context"
	"errors"
	"fmt"

	"unlucky/layout"
	"unlucky/linker"
)

// A Kernel is linked again and again; *linker.Kernel, seen from here.
type Kernel interface {
	// Layout is the baseline's, in output order.
	Layout(context.Context) ([]layout.Section, error)
	// Randomizes tells whether the linker has lld's flag.
	Randomizes() bool
	// Tables counts the arrays that the linker builds in the image.
	Tables() (int, error)
	// Linker makes a place to link in; several link at the same time.
	Linker() (Linker, error)
}

// Linker links one plan after the other.
type Linker interface {
	// Link's error is a *linker.LinkError if the layout does not link.
	Link(context.Context, layout.Plan) (linker.Image, error)
	Close() error
}

// resolve decides what auto stands for by linking the first seed with lld's
// own padding; note is told why.
func resolve(ctx context.Context, s layout.Strategy, k Kernel, seed uint32, note func(string, ...any)) (layout.Strategy, error) {
	if s == layout.Shuffle && seed == 0 {
		return "", errors.New("strategy shuffle: seed 0 means another order each time to lld: begin with seed 1")
	}
	if s != layout.Auto && s != layout.LLD {
		return s, nil
	}
	if !k.Randomizes() {
		if s == layout.LLD {
			return "", errors.New("this lld has no --randomize-section-padding: LLVM 20 and later have it")
		}
		note("strategy cover: this lld has no --randomize-section-padding")
		return layout.Cover, nil
	}
	tables, err := k.Tables()
	if err != nil {
		return "", err
	}
	if s == layout.LLD {
		if tables > 0 {
			note("warning: strategy lld pads data too, inside the %d tables that the linker builds: expect false crashes", tables)
		}
		return s, nil
	}
	l, err := k.Linker()
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, err = l.Link(ctx, layout.LLD.Plan(seed, nil))
	var failed *linker.LinkError
	switch {
	case errors.As(err, &failed) && failed.LayoutFault():
		note("strategy cover: seed %d does not link when lld pads everything (%s)", seed, failed.Reason)
		return layout.Cover, nil
	case err != nil:
		return "", fmt.Errorf("linking seed %d with --randomize-section-padding: %w", seed, err)
	case tables > 0:
		note("strategy cover: seed %d links when lld pads everything, but then the %d tables that the linker builds are padded inside, and crash a correct kernel", seed, tables)
		return layout.Cover, nil
	}
	return layout.LLD, nil
}

package fuzz

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"gonum.org/v1/gonum/mathext/prng"

	"unlucky/linker"
)

// Strategy is how a seed becomes a plan, with its version: the same strategy,
// seed and vmlinux.o always give the same layout.
type Strategy string

const (
	// LLD has lld pad every output section that it randomizes.
	LLD Strategy = "lld/1"
	// Text pads .text input sections only, by lld's own algorithm.
	Text Strategy = "text/1"
	// Cover pads .text input sections so that each function comes to each of
	// its residues in as few layouts as that takes.
	Cover Strategy = "cover/1"
	// Auto is LLD where that can be believed, otherwise Text.
	Auto Strategy = "auto"
)

// ParseStrategy reads a strategy as a person or a saved seed gives it.
func ParseStrategy(s string) (Strategy, error) {
	switch name, version, versioned := strings.Cut(s, "/"); {
	case s == string(Auto):
		return Auto, nil
	case name != "lld" && name != "text" && name != "cover":
		return "", fmt.Errorf("strategy %q: there are auto, lld, text and cover", s)
	case versioned && version != "1":
		return "", fmt.Errorf("strategy %q: this unlucky knows version 1 only", s)
	default:
		return Strategy(name + "/1"), nil
	}
}

// Plan is the plan of a seed for a kernel whose baseline has this layout. It
// depends on nothing else.
func (s Strategy) Plan(seed uint32, layout []linker.Section) linker.Plan {
	switch s {
	case LLD:
		return linker.Plan{Flag: &seed}
	case Cover:
		return linker.Plan{Paddings: coverPaddings(seed, layout)}
	}
	return linker.Plan{Paddings: textPaddings(seed, layout)}
}

// textPaddings are the paddings that lld gives to .text input sections under
// --randomize-section-padding=seed (lld/ELF/Writer.cpp,
// randomizeSectionPadding). Every input section of every output section that
// lld randomizes takes its draw, in order, and so does each segment; the draws
// of what is not padded here are thrown away.
func textPaddings(seed uint32, layout []linker.Section) []linker.Padding {
	var paddings []linker.Padding
	g := prng.NewMT19937()
	g.Seed(uint64(seed))
	output, segment := "", -1
	for _, s := range layout {
		if !randomized(s.Output) {
			continue
		}
		if s.Output != output && s.Segment != segment {
			g.Uint32() // lld moves the first section of a segment by up to a page
			segment = s.Segment
		}
		output = s.Output
		if g.Uint32()%16 == 0 && s.Text && s.Align > 0 {
			paddings = append(paddings, linker.Padding{Section: s.Name, Bytes: s.Align})
		}
	}
	return paddings
}

// randomized are the output sections that lld pads.
func randomized(output string) bool {
	switch output {
	case ".bss", ".data", ".data.rel.ro", ".lbss", ".ldata", ".lrodata", ".ltext", ".rodata":
		return true
	}
	return strings.HasPrefix(output, ".text")
}

// A Kernel is linked again and again; *linker.Kernel, seen from here.
type Kernel interface {
	// Layout is the baseline's, in output order.
	Layout(context.Context) ([]linker.Section, error)
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
	Link(context.Context, linker.Plan) (linker.Image, error)
	Close() error
}

// resolve decides what auto stands for by linking the first seed with lld's
// own padding; note is told why.
func (s Strategy) resolve(ctx context.Context, k Kernel, seed uint32, note func(string, ...any)) (Strategy, error) {
	if s == Text || s == Cover {
		return s, nil
	}
	if !k.Randomizes() {
		if s == LLD {
			return "", errors.New("this lld has no --randomize-section-padding: LLVM 20 and later have it (apt-get install clang-22 lld-22 llvm-22)")
		}
		note("strategy text: this lld has no --randomize-section-padding")
		return Text, nil
	}
	tables, err := k.Tables()
	if err != nil {
		return "", err
	}
	if s == LLD {
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
	_, err = l.Link(ctx, LLD.Plan(seed, nil))
	var failed *linker.LinkError
	switch {
	case errors.As(err, &failed) && failed.LayoutFault():
		note("strategy text: seed %d does not link when lld pads everything (%s)", seed, failed.Reason)
		return Text, nil
	case err != nil:
		return "", fmt.Errorf("linking seed %d with --randomize-section-padding: %w", seed, err)
	case tables > 0:
		note("strategy text: seed %d links when lld pads everything, but then the %d tables that the linker builds are padded inside, and crash a correct kernel", seed, tables)
		return Text, nil
	}
	return LLD, nil
}

package layout

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
)

// Padding is a number of bytes put directly before one input section, so that
// it and all that follow it move.
type Padding struct {
	// Section names the input section: its name, and from the second
	// section of the same name on "#2", "#3", ... in the order of the object.
	Section string `yaml:"section" json:"section"`
	// Bytes is the length of the padding, before the section is aligned.
	Bytes uint64 `yaml:"bytes" json:"bytes"`
}

// MaxPadding is how many bytes all paddings of a plan may have: no more than an
// image may (KERNEL_IMAGE_SIZE).
const MaxPadding = 1 << 30

// PaddingBefore sums up the paddings before each section.
func (p Plan) PaddingBefore() (map[string]uint64, error) {
	before := make(map[string]uint64, len(p.Paddings))
	var total uint64
	for _, pad := range p.Paddings {
		if pad.Bytes > MaxPadding-total {
			return nil, fmt.Errorf("padding before %s: %d bytes are too many", pad.Section, pad.Bytes)
		}
		if _, ok := before[pad.Section]; ok {
			return nil, fmt.Errorf("padding before %s: it is in the plan twice", pad.Section)
		}
		total += pad.Bytes
		before[pad.Section] = pad.Bytes
	}
	return before, nil
}

// Plan is the explicit order and paddings of one layout. A seed is only a short
// name for a plan: a plan can be written out, read back and linked again
// without it. The zero Plan is the baseline.
type Plan struct {
	// Flag, where set, is handed to lld as --randomize-section-padding and
	// lld itself pads every output section that it randomizes.
	Flag *uint32 `yaml:"randomize-section-padding,omitempty" json:"randomize-section-padding,omitempty"`
	// Order lists the sections that do not stand where the baseline has them,
	// in their new order: within each group of sections that can take each
	// other's places, those listed take the places of those listed.
	Order []string `yaml:"order,omitempty" json:"order,omitempty"`
	// Paddings are realised by rewriting the object, in output order.
	Paddings []Padding `yaml:"paddings,omitempty" json:"paddings,omitempty"`
}

// Digest is the SHA-256 of the plan, in hex. Equal plans have equal digests.
func (p Plan) Digest() string {
	var text []byte
	if p.Flag != nil {
		text = fmt.Appendf(text, "randomize-section-padding %d\n", *p.Flag)
	}
	for _, name := range p.Order {
		text = append(strconv.AppendQuote(text, name), '\n')
	}
	for _, pad := range p.Paddings {
		text = append(strconv.AppendUint(append(strconv.AppendQuote(text, pad.Section), ' '), pad.Bytes, 10), '\n')
	}
	digest := sha256.Sum256(text)
	return hex.EncodeToString(digest[:])
}

package seeds

import (
	"cmp"
	"fmt"
	"strconv"

	"gopkg.in/yaml.v3"
)

// ID names one layout of a kernel: the baseline, or a seed. The zero ID is the
// baseline. IDs are comparable with ==.
type ID struct {
	seeded bool
	seed   uint32
}

// Baseline is the layout without any padding.
var Baseline ID

// Seed names the layout of a seed. 0 is a seed like any other.
func Seed(n uint32) ID { return ID{seeded: true, seed: n} }

// ParseLayout reads what String writes: "baseline", or a seed in decimal
// without sign or leading zeros.
func ParseID(s string) (ID, error) {
	if s == "baseline" {
		return Baseline, nil
	}
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || strconv.FormatUint(n, 10) != s {
		return ID{}, fmt.Errorf("%q is neither baseline nor a seed (0 to 4294967295)", s)
	}
	return Seed(uint32(n)), nil
}

// Seed returns the seed, and false for the baseline.
func (l ID) Seed() (n uint32, ok bool) { return l.seed, l.seeded }

// String returns "baseline" or the seed in decimal.
func (l ID) String() string {
	if !l.seeded {
		return "baseline"
	}
	return strconv.FormatUint(uint64(l.seed), 10)
}

// Name is how a sentence speaks of the layout: "seed 7", "the baseline".
func (l ID) Name() string {
	if l == Baseline {
		return "the baseline"
	}
	return "seed " + l.String()
}

// Compare orders the baseline first, then the seeds by number.
func (l ID) Compare(m ID) int {
	if l.seeded != m.seeded {
		if m.seeded {
			return -1
		}
		return 1
	}
	return cmp.Compare(l.seed, m.seed)
}

// MarshalText writes what String returns.
func (l ID) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText is ParseLayout.
func (l *ID) UnmarshalText(text []byte) (err error) {
	*l, err = ParseID(string(text))
	return err
}

// MarshalYAML writes a seed as a plain number: through MarshalText it would
// stand in quotes.
func (l ID) MarshalYAML() (any, error) {
	if l.seeded {
		return l.seed, nil
	}
	return l.String(), nil
}

// UnmarshalYAML names the line of a bad layout, which yaml.v3 does not for
// UnmarshalText.
func (l *ID) UnmarshalYAML(n *yaml.Node) error {
	if err := l.UnmarshalText([]byte(n.Value)); err != nil {
		return fmt.Errorf("line %d: %w", n.Line, err)
	}
	return nil
}

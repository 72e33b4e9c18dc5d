package scenarios

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Size is a number of bytes, written as "128M" or "1G".
type Size int64

const units = "KMGT"

// UnmarshalText reads a whole number with a unit. A bare number is refused:
// QEMU would take it for MiB, a reader for bytes.
func (s *Size) UnmarshalText(text []byte) error {
	bad := fmt.Errorf("%q is not a size (like 128M)", text)
	if len(text) == 0 {
		return bad
	}
	unit := strings.IndexByte(units, text[len(text)-1])
	n, err := strconv.ParseUint(string(text[:len(text)-1]), 10, 63)
	if unit < 0 || err != nil || n == 0 {
		return bad
	}
	shift := 10 * (unit + 1)
	if n > math.MaxInt64>>shift {
		return bad
	}
	*s = Size(n << shift)
	return nil
}

// MarshalText writes the size in its largest whole unit.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

func (s Size) String() string {
	n, unit := int64(s), ""
	for i := 0; i < len(units) && n != 0 && n%1024 == 0; i++ {
		n, unit = n/1024, units[i:i+1]
	}
	return fmt.Sprintf("%d%s", n, unit)
}

// Duration is a length of time, written as "20s" or "1m30s".
type Duration time.Duration

const minute = time.Minute

// UnmarshalText reads a duration above zero.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil || v <= 0 {
		return fmt.Errorf("%q is not a duration (like 20s)", text)
	}
	*d = Duration(v)
	return nil
}

// MarshalText writes the duration as Go does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

func (d Duration) String() string { return time.Duration(d).String() }

// Regexp is a regular expression of Go's package regexp; the zero Regexp is
// the one that was not given, and holds nil.
type Regexp struct{ *regexp.Regexp }

// UnmarshalText refuses what matches everything.
func (r *Regexp) UnmarshalText(text []byte) error {
	re, err := regexp.Compile(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a regular expression: %s", text, strings.TrimPrefix(err.Error(), "error parsing regexp: "))
	}
	if re.MatchString("") {
		return errors.New("matches an empty console, and so every boot")
	}
	r.Regexp = re
	return nil
}

// MarshalText writes the expression.
func (r Regexp) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// IsZero tells whether no expression was given.
func (r Regexp) IsZero() bool { return r.Regexp == nil }

// String is the expression, empty for the zero Regexp.
func (r Regexp) String() string {
	if r.Regexp == nil {
		return ""
	}
	return r.Regexp.String()
}

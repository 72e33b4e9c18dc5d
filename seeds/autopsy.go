package seeds

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"unlucky/autopsy"
)

// Autopsy is what the memory of a dead guest has told of its code.
type Autopsy struct {
	Twin   string   `yaml:"twin" json:"twin"`               // the layout that passes, by whose memory it is told
	Damage []Damage `yaml:"damage,omitempty" json:"damage"` // the most important first; none where the code is intact
}

// Damage is some code that is in memory as it should not be.
type Damage struct {
	autopsy.Damage `yaml:",inline"`
	// Culprit is the number, from 1 on, of the one that has a function of it; 0 for none.
	Culprit int `yaml:"culprit,omitempty" json:"culprit,omitempty"`
}

// MarshalYAML writes the offset in hex.
func (d Damage) MarshalYAML() (any, error) {
	type plain Damage
	return inHex(plain(d), "offset", d.Offset)
}

// NewAutopsy is what some damage has told, by the memory of a layout that passes.
func NewAutopsy(twin string, all []*autopsy.Damage) *Autopsy {
	a := &Autopsy{Twin: twin}
	for _, d := range all {
		a.Damage = append(a.Damage, Damage{Damage: *d})
	}
	return a
}

// Cause names the damage that has run, or that the kernel has trapped by: equal ones are
// of one bug. It is empty where none has.
func (a *Autopsy) Cause() string {
	if a == nil || len(a.Damage) == 0 || !a.Damage[0].Executed() && !a.Damage[0].Crashed {
		return ""
	}
	d := a.Damage[0]
	return fmt.Sprintf("%s+%#x is %s", d.Function, d.Offset, d.Why)
}

// AutopsyPath is where the autopsy of the seed file at path lies.
func AutopsyPath(path string) string { return strings.TrimSuffix(path, ".yaml") + ".autopsy.json" }

// maxAutopsy bounds what is read of one, in bytes: what a memory has told is bounded to
// less.
const maxAutopsy = 4 << 20

// ReadAutopsy reads what Write has written.
func ReadAutopsy(path string) (*Autopsy, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxAutopsy+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxAutopsy {
		return nil, fmt.Errorf("%s: longer than %d MiB: no autopsy", path, maxAutopsy>>20)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	a := new(Autopsy)
	if err := d.Decode(a); err != nil {
		return nil, fmt.Errorf("%s: no autopsy, or one of a newer unlucky: %w", path, err)
	}
	return a, nil
}

// Write writes it to a file, which is replaced atomically.
func (a *Autopsy) Write(path string) error {
	data, err := json.Marshal(a)
	if err != nil {
		return err
	}
	return writeFile(path, append(data, '\n'))
}

package evidence

import (
	"errors"
	"io/fs"
	"path/filepath"
	"slices"

	"unlucky/seeds"
)

// Bug is damage in memory, and the titles by which it shows itself, as far as the memory
// of one layout of each tells.
type Bug struct {
	Damage  seeds.Damage `json:"damage"`
	Titles  []string     `json:"titles"`  // the most frequent first
	Layouts int          `json:"layouts"` // that showed them
}

// Bugs groups the titles of a sweep in a folder by what has run in the memory of their
// layouts. The error names what cannot be read, and comes beside what could.
func Bugs(dir string, findings []Finding) (bugs []Bug, failed error) {
	causes := []string{}
	for _, f := range findings {
		a, err := autopsyOf(dir, f.Layouts)
		failed = errors.Join(failed, err)
		cause := a.Cause()
		if cause == "" {
			continue
		}
		i := slices.Index(causes, cause)
		if i < 0 {
			i = len(causes)
			causes, bugs = append(causes, cause), append(bugs, Bug{Damage: a.Damage[0]})
		}
		bugs[i].Titles = append(bugs[i].Titles, f.Title)
		bugs[i].Layouts += len(f.Layouts)
	}
	return bugs, failed
}

// autopsyOf is what the memory of the first of some layouts has told that was looked
// into; nil where none was.
func autopsyOf(dir string, layouts []seeds.Record) (*seeds.Autopsy, error) {
	for _, l := range layouts {
		if l.Path == "" {
			continue
		}
		a, err := seeds.ReadAutopsy(seeds.AutopsyPath(filepath.Join(dir, l.Path)))
		if !errors.Is(err, fs.ErrNotExist) {
			return a, err
		}
	}
	return nil, nil
}

package linker

import "fmt"

// Way is how layouts are linked, where a kernel can be so: by the fastest way that is
// proven to give the image of the others.
type Way int

const (
	Delta  Way = iota // from an image that lld has linked
	Pass              // in one pass of lld
	Script            // by the whole of link-vmlinux.sh, which makes a System.map
)

var ways = []string{"delta", "pass", "script"}

func (w Way) String() string { return ways[w] }

// ParseWay reads a way as a person gives it.
func ParseWay(s string) (Way, error) {
	for i, name := range ways {
		if s == name {
			return Way(i), nil
		}
	}
	return 0, fmt.Errorf("there is no way to link called %q: there are delta, pass and script", s)
}

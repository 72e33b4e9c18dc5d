package kbuild

// Progress is told how far a long step has come. Step is a line for people;
// total is 0 where it is not known beforehand. A step ends when the next one
// starts or the call returns.
type Progress func(step string, done, total int64)

package raft

import (
	"fmt"
	"reflect"
	"testing"
	"unsafe"
)

func dump(t reflect.Type, ind string) {
	for i := 0; i < t.NumField(); i++ {
		f := t.Field(i)
		fmt.Printf("%s%4d %4d %s %s\n", ind, f.Offset, f.Type.Size(), f.Name, f.Type)
		if f.Type.Kind() == reflect.Struct && f.Type.Size() > 32 && len(ind) < 4 {
			dump(f.Type, ind+"    ")
		}
	}
}
func TestSizes(t *testing.T) {
	fmt.Println("Core", unsafe.Sizeof(Core{}))
	dump(reflect.TypeOf(Core{}), "")
	fmt.Println("progress", unsafe.Sizeof(progress{}))
	dump(reflect.TypeOf(progress{}), "")
}

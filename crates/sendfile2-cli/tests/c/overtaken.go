// overtaken FILE: sends the file to the first client, by sendfile, overwrites it with the letter B, says
// so, and waits until its standard input ends.
package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	file, err := os.OpenFile(os.Args[1], os.O_RDWR, 0)
	check(err)
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	check(err)
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	client, err := listener.Accept()
	check(err)
	size, err := io.Copy(client, file)
	check(err)
	_, err = file.WriteAt(bytes.Repeat([]byte("B"), int(size)), 0)
	check(err)
	fmt.Println("overwritten")
	client.Close()
	io.Copy(io.Discard, os.Stdin)
}

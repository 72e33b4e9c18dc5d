/*
 * Entered by the PVH protocol: 32-bit, flat segments, no paging, %ebx holds
 * the address of hvm_start_info. Goes to 64-bit mode with the first GiB mapped
 * one to one, and calls run().
 */
	.section .note.pvh, "a", @note
	.balign 4
	.long 4, 4, 18		/* XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz "Xen"
	.long start

	.section .head.text, "ax"
	.code32
	.globl start
start:
	movl	$pml4, %edi
	movl	$(pdpt + 3), (%edi)
	movl	$(pd + 3), pdpt
	movl	$pd, %edi
	movl	$0x83, %eax	/* present, writable, 2 MiB */
	movl	$512, %ecx
1:	movl	%eax, (%edi)
	addl	$0x200000, %eax
	addl	$8, %edi
	loop	1b
	movl	$pml4, %eax
	movl	%eax, %cr3
	movl	%cr4, %eax
	orl	$0x20, %eax	/* PAE */
	movl	%eax, %cr4
	movl	%ebx, %esi
	movl	$0xc0000080, %ecx
	rdmsr
	orl	$0x100, %eax	/* EFER.LME */
	wrmsr
	movl	%cr0, %eax
	orl	$0x80000000, %eax
	movl	%eax, %cr0
	lgdt	gdt_descriptor
	ljmp	$8, $2f
	.code64
2:	movl	$stack_top, %esp
	movl	%esi, %edi
	call	run
3:	hlt
	jmp	3b

	.section .text..by_hand, "ax"
	.globl by_hand
by_hand:
	ret

	.section .rodata.gdt, "a"
	.balign 8
gdt:	.quad 0, 0x00af9a000000ffff
gdt_descriptor:
	.word	15
	.long	gdt

	.section .bss.tables, "aw", @nobits
	.balign 4096
pml4:	.skip 4096
pdpt:	.skip 4096
pd:	.skip 4096
	.skip 4096
stack_top:

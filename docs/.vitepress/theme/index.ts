// The default theme, in the fonts of the reader's machine: nothing is fetched from elsewhere.
export { default } from "vitepress/theme-without-fonts"

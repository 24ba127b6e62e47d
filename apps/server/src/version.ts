/** The version that `parvis --version`, the health page and the reference tell. */
export const VERSION = '0.1.0'
